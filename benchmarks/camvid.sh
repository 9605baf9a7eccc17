#!/usr/bin/env bash
# Trains the two segmenters of the README on CamVid, makes them integers, and scores them.
#     benchmarks/camvid.sh CAMVID VIT_TINY.safetensors OUT
# CAMVID has train/ and val/ with images/ and annotations/; over an hour on two cores.
set -euo pipefail
data=$1 weights=$2 out=$3
classes=$(dirname "$0")/camvid.txt
export OMP_NUM_THREADS=1

train() {
    torchrun --nproc-per-node 2 -m iqvit train segmentation --data "$data" --class-file "$classes" \
        --input-size 352x480 --batch 8 --drop-path 0.05 --class-weights sqrt-inverse --threads 1 "$@"
}

train --crop 224x320 --model segmenter:vit_tiny_patch16_224+linear --weights "$weights" --epochs 24 \
    --until 12 --lr 4e-4 --encoder-lr-scale 0.4 --warmup 1 --ema 0.99 --validate-every 4 -o "$out/crops"
train --from "$out/crops/last" --epochs 6 --lr 3e-4 --encoder-lr-scale 0.6 --warmup 0.5 --ema 0.98 \
    --validate-every 2 -o "$out/linear"
train --from "$out/linear" --decoder mask --epochs 4 --lr 6e-4 --encoder-lr-scale 0.2 --warmup 0.5 \
    --ema 0.98 --validate-every 2 -o "$out/mask"

unset OMP_NUM_THREADS
for decoder in linear mask; do
    for images in 32 1; do
        made=$out/$decoder$images
        iqvit quantize "segmenter:$out/$decoder" --calib "$data/train/images" --images $images -o "$made.iqv"
        iqvit compile "$made.iqv" -o "$made"
        iqvit eval segmentation --data "$data" --class-file "$classes" "$made" \
            --reference "segmenter:$out/$decoder" --json "$made.json"
    done
done
