"""`python -m floq_eqx` is `floq`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
