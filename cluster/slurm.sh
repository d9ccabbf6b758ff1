#!/bin/bash
# A launch on several nodes of a Slurm cluster:
#     RUNS_DIR=/shared/runs sbatch --nodes=2 --gpus-per-node=8 cluster/slurm.sh --preset dcgan-64 --kimg 5000
# Everything after the script's name goes to `ganscale launch`. --gpus defaults to all that Slurm gives, --name to
# ganscale-JOBID. Two minutes before its time is over the run is asked to save and stop; --resume goes on with it.
#SBATCH --job-name=ganscale
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=ganscale-%j.log

# Exclusive nodes are a must: at its end `ray symmetric-run` calls `ray stop`, which ends every Ray on a node.
set -euo pipefail

# RUNS_DIR: a folder that all nodes share. GANSCALE_ENV: the environment, at the same place on every node.
: "${RUNS_DIR:?must be a folder that every node sees, got nothing; call RUNS_DIR=/shared/runs sbatch ...}"
GANSCALE_ENV="${GANSCALE_ENV:-$HOME/ganscale}"
# shellcheck source=/dev/null
if [[ -f "$GANSCALE_ENV/bin/activate" ]]; then source "$GANSCALE_ENV/bin/activate"; fi

# The run that --resume names, as launch finds it: a run directory or the name of one, or a checkpoint in it. One in an
# object store stays the address that it is.
run_of() {
    local run="${1%/checkpoints/*}"
    if [[ $run != *://* && ! -f "$run/config.json" ]]; then run="$RUNS_DIR/$run"; fi
    echo "$run"
}

run_dir="$RUNS_DIR/ganscale-$SLURM_JOB_ID"
name_given=no gpus_given=no
words=("$@")
for ((i = 0; i < ${#words[@]}; i++)); do
    case "${words[i]}" in
        --name) run_dir="$RUNS_DIR/${words[i + 1]:-}" name_given=yes ;;
        --name=*) run_dir="$RUNS_DIR/${words[i]#--name=}" name_given=yes ;;
        --resume) run_dir="$(run_of "${words[i + 1]:-}")" name_given=yes ;;
        --resume=*) run_dir="$(run_of "${words[i]#--resume=}")" name_given=yes ;;
        --gpus | --gpus=* | --cpus | --cpus=* | --workers | --workers=*) gpus_given=yes ;;
        --runs-dir | --runs-dir=* | --address | --address=*)
            echo "error: ${words[i]} must be left out under Slurm, got it; RUNS_DIR names the folder" >&2
            exit 2
            ;;
    esac
done
options=(--address auto --runs-dir "$RUNS_DIR")
if [[ $name_given == no ]]; then options+=(--name "ganscale-$SLURM_JOB_ID"); fi
if [[ $gpus_given == no && -n ${SLURM_GPUS_ON_NODE:-} ]]; then
    options+=(--gpus "$((SLURM_GPUS_ON_NODE * SLURM_JOB_NUM_NODES))")
fi

# A token for this job alone, on the home folder that the nodes share.
private="$HOME/.ray/slurm-$SLURM_JOB_ID"
mkdir -p "$HOME/.ray" && mkdir -m 700 "$private"
trap 'rm -rf "$private"' EXIT
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$private/auth_token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$private/auth_token"
export RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
export GANSCALE_EXIT="$private/exit_code"

# Slurm's notice: the flag that every worker looks for at each tick.
# shellcheck disable=SC2329  # called by the trap
stop() {
    if [[ $run_dir == *://* ]]; then
        echo "warning: nobody could be asked to save and stop: the notice cannot reach $run_dir, in an object store;" \
            "--resume goes on from its newest checkpoint" >&2
    elif [[ -d "$run_dir/.ray" ]]; then
        touch "$run_dir/.ray/stop"
    else
        echo "warning: nobody could be asked to save and stop: $run_dir must be the run, and under way" >&2
    fi
}
trap stop TERM INT

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# shellcheck disable=SC2016  # expanded by the shell on the head node
record='ganscale launch "$@" && code=0 || code=$?; echo "$code" >"$GANSCALE_EXIT"; exit "$code"'
srun --ntasks-per-node=1 ray symmetric-run --address "${nodes[0]}:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "${SLURM_CPUS_ON_NODE:-1}" --disable-usage-stats \
    -- bash -c "$record" launch "${options[@]}" "$@" &
step=$!
# `wait` returns early when a signal was handled, so it is asked until the step has really ended
while kill -0 "$step" 2>/dev/null; do wait "$step" && status=0 || status=$?; done

# `ray symmetric-run` exits 0 also where Ray did not start: what counts is that the launch itself has ended, and how.
if [[ ! -s $GANSCALE_EXIT ]]; then
    echo "error: Ray must start on all $SLURM_JOB_NUM_NODES nodes, got none that trained (srun: ${status:-?}); see above" >&2
    exit 1
fi
exit "$(<"$GANSCALE_EXIT")"
