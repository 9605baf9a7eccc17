#!/usr/bin/env bash
# Trains the detectors of the README on BCCD and on COCO's supercategories, makes them integers, and scores them.
#     benchmarks/detection.sh BCCD COCO VIT_TINY.safetensors OUT
# BCCD and COCO have annotations/instances_SPLIT*.json and the images in SPLIT*/; three hours on two cores.
set -euo pipefail
bccd=$1 coco=$2 weights=$3 out=$4

# One process a model: two of them keep two cores busy without waiting for each other.
train() {
    OMP_NUM_THREADS=1 iqvit train detection --threads 1 --input-size 256x320 --batch 4 --ema 0.995 "$@"
}
cells() {
    train --data "$bccd" --vertical-flips "$@"
}

cells --model rtdetr:vit_tiny --weights "$weights" --epochs 40 --lr 3e-4 --validate-every 4 -o "$out/vit" &
cells --model rtdetr:resnet_tiny --epochs 60 --lr 4e-4 --backbone-lr-scale 1 --validate-every 5 -o "$out/resnet"
wait
# The offsets of discrete sampling do not learn: it starts from the bilinear one, as the authors' did.
for name in vit resnet; do
    cells --from "$out/$name" --sampling discrete --epochs 6 --lr 1e-4 --validate-every 2 -o "$out/${name}_discrete" &
done
wait
train --data "$coco" --supercategories --from "$out/vit" --epochs 12 --lr 3e-4 --validate-every 3 -o "$out/coco"

score() {
    name=$1 calibration=$2 images=$3
    shift 3
    iqvit quantize "rtdetr:$out/$name" --calib "$calibration" --images 32 -o "$out/$name.iqv"
    iqvit compile "$out/$name.iqv" -o "$out/$name.artifact"
    iqvit eval coco "$out/$name.artifact" --reference "rtdetr:$out/$name" --json "$out/$name.json" "$@"
    python "$(dirname "$0")/equality.py" "$out/$name.iqv" --data "$images" --images 200 --targets host
}
for name in vit vit_discrete resnet resnet_discrete; do
    score "$name" "$bccd/train" "$bccd/val" --data "$bccd"
done
score coco "$coco/train2017" "$coco/val2017" --data "$coco" --supercategories
