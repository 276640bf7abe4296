#!/usr/bin/env bash
# A real SLURM with two nodes on this one machine, for tests/cluster. Without systemd and cgroups, as root; needs munge and
# slurm-wlm. The nodes are called by addresses of the loopback network, so that their names lead somewhere, and each keeps to
# one core. They claim 64 CPUs and 8 GPUs, so that the template's own request fits as well.
#
#   two_nodes.sh up DIR PORT     daemons on PORT, PORT+1 and PORT+2; prints nothing once both nodes are idle
#   two_nodes.sh down DIR        ends them, with every job
set -euo pipefail
command=${1:?up or down}
dir=${2:?folder}
conf=$dir/etc/slurm.conf

down() { # nothing here is kept, so nothing needs to end gently
    for pidfile in "$dir"/run/*.pid; do
        [ ! -s "$pidfile" ] || kill -KILL "$(cat "$pidfile")" 2>/dev/null || true
    done
    rm -f "$dir"/run/*.pid
    # Jobs outlive the daemons. Whatever was started in this cluster has its configuration in the environment.
    # shellcheck disable=SC2013
    for environ in $(grep -lszxF "SLURM_CONF=$conf" /proc/[0-9]*/environ); do
        pid=${environ//[^0-9]/}
        [ "$pid" = $$ ] || [ "$pid" = $PPID ] || kill -KILL "$pid" 2>/dev/null || true
    done
}

configuration() {
    cat <<END
ClusterName=two_nodes
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$port
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmctldLogFile=$dir/log/slurmctld.log
StateSaveLocation=$dir/state
SlurmUser=root
SlurmdUser=root
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmdLogFile=$dir/log/slurmd-%n.log
SlurmdSpoolDir=$dir/spool/%n
SlurmdParameters=config_overrides
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.sock
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
GresTypes=gpu
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
KillWait=20
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=spot Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
END
    for i in 1 2; do
        echo "NodeName=127.0.0.$i NodeHostname=$(hostname -s) NodeAddr=127.0.0.$i Port=$((port + i)) CPUs=64 Gres=gpu:8"
    done
}

up() {
    port=${1:?port}
    mkdir -p "$dir"/{etc,state,log,run} "$dir"/spool/127.0.0.{1,2}
    chmod 755 "$dir" "$dir/run"
    chmod 700 "$dir/etc"
    head -c 1024 /dev/urandom >"$dir/etc/munge.key"
    chmod 400 "$dir/etc/munge.key"
    configuration >"$conf"
    touch "$dir"/run/gpu{0..7}
    echo "Name=gpu File=$dir/run/gpu[0-7]" >"$dir/etc/gres.conf" # a file stands for a device
    export SLURM_CONF=$conf
    munged --socket="$dir/run/munge.sock" --key-file="$dir/etc/munge.key" --log-file="$dir/log/munged.log" \
        --pid-file="$dir/run/munged.pid" --seed-file="$dir/run/munge.seed"
    slurmctld -c -f "$conf"
    for i in 1 2; do
        taskset --cpu-list $(((i - 1) % $(nproc))) slurmd -N "127.0.0.$i" -f "$conf"
    done
    for _ in $(seq 60); do
        [ "$(timeout 5 sinfo -h -N -p spot -t idle -o %N 2>/dev/null | wc -l)" != 2 ] || exit 0
        sleep 0.5
    done
    tail -n 20 "$dir"/log/*.log >&2
    echo "the nodes did not become idle; see $dir/log" >&2
    exit 1
}

"$command" "${3:-}"
