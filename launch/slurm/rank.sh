#!/usr/bin/env bash
# One rank of train.sbatch: runs the given command and hands its exit code on in a form that survives srun.
# When a rank fails, srun ends the others by SIGTERM and returns the highest code of all: the others' 143 would hide why the
# first one failed. So what train.sbatch must know is raised above 143.
trap : INT TERM USR1 # the trainer is sent them as well; its exit code says what became of it

"$@"
code=$?

case $code in
    0 | 130 | 138 | 143) exit "$code" ;; # complete, or saved and left after a signal
    2) exit 202 ;;                       # something that the user can put right
esac
echo "rank ${SLURM_PROCID:-0} on ${SLURMD_NODENAME:-$HOSTNAME} ended with exit code $code" >&2
exit 201
