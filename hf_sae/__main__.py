"""`python -m hf_sae` is `hf-sae`; `accelerate launch -m hf_sae train …` trains on several processes."""

from .cli import main


if __name__ == "__main__":
    main()
