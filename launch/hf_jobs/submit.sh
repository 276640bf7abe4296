#!/bin/sh
# Train on Hugging Face Jobs, on one machine. All flags are the trainer's:
#   export IMAGE=docker.io/you/snac_accel:latest BUCKET=you/snac-runs
#   hf buckets create "$BUCKET" --private
#   sh launch/hf_jobs/submit.sh --preset ljspeech --batch_size 16 --training.save_interval 1000
# DRY_RUN=1 prints the job instead of starting it. docs/launching/hf_jobs.md
set -eu
: "${IMAGE:?is not set: the image of launch/docker/Dockerfile, where Hugging Face can pull it}"
: "${BUCKET:?is not set: a bucket of yours, as you/snac-runs; the run is kept there}"

exec hf jobs run ${DRY_RUN:+--dry-run} --detach \
    --name snac-accel \
    --flavor "${FLAVOR:-a10g-large}" \
    --timeout "${TIMEOUT:-8h}" \
    --attempts "${ATTEMPTS:-3}" \
    --secrets HF_TOKEN \
    --volume "hf://buckets/$BUCKET:/runs" \
    --env PROCESSES="${PROCESSES:-1}" \
    -- "$IMAGE" \
    python /app/launch/hf_jobs/job.py "/runs/${RUN:-snac}" "$@"
# FLAVOR    the machine: `hf jobs hardware` lists them, with prices
# PROCESSES one for each GPU of the machine
# TIMEOUT   a job is ended then; started again, with the same RUN, it goes on
# ATTEMPTS  how often a job that failed is started, the first time included
