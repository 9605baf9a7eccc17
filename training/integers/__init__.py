"""Parts of quantisation-aware training; `iqvit.training.through_integers` puts them together."""
