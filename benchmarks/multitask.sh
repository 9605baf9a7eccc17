#!/usr/bin/env bash
# Trains one ViT-Tiny for class maps and boxes of CamVid, and a detector alone, makes integers of both, and scores them.
#     benchmarks/multitask.sh CAMVID SEGMENTER VIT_TINY.safetensors OUT
# CAMVID has train/ and val/ with images/ and annotations/; SEGMENTER is the linear one that camvid.sh trained.
set -euo pipefail
camvid=$1 segmenter=$2 weights=$3 out=$4
here=$(dirname "$0")
data=$out/data
export OMP_NUM_THREADS=1

python "$here/mask_boxes.py" "$camvid" "$data" --class-file "$here/camvid.txt"

train() {
    torchrun --nproc-per-node "${processes:-2}" -m iqvit train "$@" --data "$data" --batch 8 --ema 0.99 --threads 1
}
# A long schedule on crops cut in the middle, then a short one on whole images that ends at a learning rate of 0.
joint() {
    train multitask --input-size 352x480 --least-area 100 --box-weight 0.25 --class-weights sqrt-inverse "$@"
}
joint --drop-path 0.05 --crop 224x320 --from "$segmenter" --epochs 40 --until 16 --lr 4e-4 --encoder-lr-scale 0.4 --warmup 1 \
    --validate-every 8 -o "$out/crops"
joint --drop-path 0.05 --from "$out/crops/last" --epochs 3 --lr 3e-4 --encoder-lr-scale 0.5 --warmup 0.5 --validate-every 3 -o "$out/multitask"

boxes() {
    train detection --drop-path 0.05 --weight-decay 0.01 --clip 1.0 "$@"
}
boxes --model rtdetr:vit_tiny --weights "$weights" --input-size 224x320 --epochs 40 --until 16 --lr 4e-4 \
    --backbone-lr-scale 0.4 --warmup 1 --validate-every 8 -o "$out/boxes_begun"
boxes --from "$out/boxes_begun/last" --input-size 352x480 --epochs 6 --lr 3e-4 --backbone-lr-scale 0.5 --warmup 0.5 \
    --validate-every 3 -o "$out/boxes"

program() {
    iqvit quantize "$1" --calib "$camvid/train/images" --images 32 -o "$2.iqv"
    iqvit compile "$2.iqv" -o "$2.artifact"
}
program "multitask:$out/multitask" "$out/multitask"
program "rtdetr:$out/boxes" "$out/boxes"
program "segmenter:$segmenter" "$out/maps"
iqvit eval multitask --data "$data" "$out/multitask.artifact" --reference "multitask:$out/multitask" --json "$out/multitask.json"

# An epoch through its own integers, at a small learning rate, by one process.
processes=1 joint --through-integers --from "$out/multitask" --calib "$camvid/train/images" --images 32 --epochs 1 --lr 1e-5 --warmup 0.2 \
    -o "$out/trained"
iqvit compile "$out/trained/model.iqv" -o "$out/trained.artifact"
iqvit eval multitask --data "$data" "$out/trained.artifact" --reference "multitask:$out/multitask" --json "$out/trained.json"

iqvit eval coco --data "$data" "$out/boxes.artifact" --reference "rtdetr:$out/boxes" --json "$out/boxes.json"
iqvit eval segmentation --data "$data" "$out/maps.artifact" --reference "segmenter:$segmenter" --json "$out/maps.json"
unset OMP_NUM_THREADS
iqvit bench "$out/multitask.artifact" "$out/boxes.artifact" "$out/maps.artifact" --threads 1,2 --json "$out/bench.json"
