#!/usr/bin/env bash
# Makes the model that comes with iqvit: renders scenes, trains on them, puts weights and model card into the package.
#     benchmarks/embedded.sh OUT [EPOCHS]
# Two processes of one thread; what is there already is gone on with. Nothing is read but what this renders.
# EPOCHS: of the last phase; the weights that are shipped had 4, and more make a better model.
set -euo pipefail
out=$1
epochs=${2:-4}
here=$(dirname "$0")
data=$out/data
model=$here/../models/embedded/scenes

scenes() {
    [ -f "$data/annotations/instances_$1.json" ] || iqvit scenes -o "$data" --split "$1" --count "$2" --size 192x256
}
scenes train 6000
scenes val 200

train() {
    local folder=$1 resume=()
    shift
    [ ! -f "$folder/checkpoint.pt" ] || resume=(--resume)
    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m iqvit train multitask --data "$data" -o "$folder" "${resume[@]}" \
        --batch 16 --threads 1 --least-area 20 --denoising 24 --drop-path 0 --weight-decay 0.02 --ema 0.99 "$@"
}
# The encoder first learns class maps alone, which takes half the time, then both heads, at last of larger images.
train "$out/maps" --model multitask:small --input-size 192x256 --crop 128x160 --scales 0.6 1.0 --box-weight 0 \
    --encoder-lr-scale 1 --epochs 14 --until 3 --lr 1e-3 --warmup 1 --validate-every 3
both=(--scales 0.85 1.25 --box-weight 0.2 --encoder-lr-scale 0.7)
train "$out/joint" --from "$out/maps/last" --input-size 128x160 "${both[@]}" \
    --epochs 9 --until 6 --lr 8e-4 --warmup 0.3 --validate-every 3
train "$out/fine" --from "$out/joint/last" --input-size 160x224 "${both[@]}" \
    --epochs "$epochs" --lr 6e-4 --warmup 0.1

mkdir -p "$model"
cp "$out/fine/config.json" "$out/fine/model.safetensors" "$model/"
rm -rf "$out/demo"
iqvit demo -o "$out/demo" --images 200
python "$here/embedded_card.py" "$out" "$model"
