"""The targets, one package each; the command line's composition root picks between them."""
