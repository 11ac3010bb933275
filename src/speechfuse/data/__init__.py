"""Corpora: manifests in, utterances and batches out."""
