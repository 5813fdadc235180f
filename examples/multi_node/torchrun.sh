#!/usr/bin/env bash
# On each machine, with NODE_RANK=0 on the first, 1 on the second, …:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-machine ./torchrun.sh train.py --output-dir /shared/sae
set -euo pipefail
exec python -m torch.distributed.run \
    --nnodes "${NNODES:-2}" \
    --nproc_per_node "${GPUS_PER_NODE:-8}" \
    --node_rank "${NODE_RANK:?set it to 0 on the first machine, 1 on the second, …}" \
    --master_addr "${MASTER_ADDR:?name of the first machine}" \
    --master_port "${MASTER_PORT:-29500}" \
    "$@"
