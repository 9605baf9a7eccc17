#!/usr/bin/env bash
# Trains the detectors of the README on BCCD and on COCO's supercategories, makes them integers, and scores them.
#     benchmarks/detection.sh BCCD COCO VIT_TINY.safetensors OUT
# BCCD and COCO have annotations/instances_SPLIT*.json and the images in SPLIT*/; three hours on two cores.
set -euo pipefail
bccd=$1 coco=$2 weights=$3 out=$4

# One process a model: two of them keep two cores busy without waiting for each other.
train() {
    OMP_NUM_THREADS=1 iqvit train detection --threads 1 --batch 4 "$@"
}
cells() {
    train --data "$bccd" --vertical-flips "$@"
}

# A long schedule cut in the middle, then a short one that ends at a learning rate of 0.
vit() {
    cells --model rtdetr:vit_tiny --weights "$weights" --input-size 256x320 --epochs 40 --until 20 --lr 3e-4 \
        --ema 0.995 --validate-every 4 -o "$out/vit_begun"
    cells --from "$out/vit_begun/last" --epochs 9 --lr 2e-4 --warmup 0.3 --ema 0.995 --validate-every 3 -o "$out/vit"
    # The offsets of discrete sampling do not learn: it starts from the bilinear one, as the authors' did.
    cells --from "$out/vit" --sampling discrete --epochs 4 --lr 1e-4 --warmup 0.3 --ema 0.99 \
        --validate-every 2 -o "$out/vit_discrete_begun"
    cells --from "$out/vit_discrete_begun" --epochs 6 --lr 2e-4 --warmup 0.3 --ema 0.995 \
        --validate-every 2 -o "$out/vit_discrete"
}
resnet() {
    local whole=(--backbone-lr-scale 1)
    cells --model rtdetr:resnet_tiny --input-size 256x320 --epochs 60 --until 30 --lr 4e-4 "${whole[@]}" \
        --ema 0.995 --validate-every 5 -o "$out/resnet_begun"
    cells --from "$out/resnet_begun/last" --epochs 14 --lr 2.5e-4 "${whole[@]}" --warmup 0.3 --ema 0.995 \
        --validate-every 4 -o "$out/resnet"
    cells --from "$out/resnet" --sampling discrete --epochs 5 --lr 1.5e-4 "${whole[@]}" --warmup 0.3 --ema 0.99 \
        -o "$out/resnet_discrete_begun"
    cells --from "$out/resnet_discrete_begun" --epochs 6 --lr 3e-4 "${whole[@]}" --warmup 0.3 --ema 0.995 \
        --validate-every 2 -o "$out/resnet_discrete"
}
vit &
resnet
wait
train --data "$coco" --supercategories --from "$out/vit" --epochs 8 --until 4 --lr 3e-4 --warmup 0.5 --ema 0.99 \
    --validate-every 4 -o "$out/coco_begun"
train --data "$coco" --supercategories --from "$out/coco_begun/last" --epochs 9 --lr 4e-4 --backbone-lr-scale 0.5 \
    --warmup 0.3 --ema 0.995 --validate-every 3 -o "$out/coco_second"
train --data "$coco" --supercategories --from "$out/coco_second" --epochs 28 --lr 4e-4 --warmup 0.5 --ema 0.995 \
    --validate-every 7 -o "$out/coco"

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
