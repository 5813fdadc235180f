"""The verbs of `hf-sae`, one module per group. Heavy imports are inside the functions: `--help` stays fast."""
