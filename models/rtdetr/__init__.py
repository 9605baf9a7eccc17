"""RT-DETRv2: backbone, hybrid encoder, decoder, their loading and their training form.

Sources: Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection" (2024) and Lv et al.,
"RT-DETRv2: Improved Baseline with Bag-of-Freebies for Real-Time Detection Transformer" (2024).
"""
