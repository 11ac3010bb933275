"""The embedded corpus: speech synthesised by espeak-ng, with speakers, sentences and emotions."""
