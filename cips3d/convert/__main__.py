"""`python -m cips3d.convert`: see `cips3d.convert.command`."""

from cips3d.convert.command import main

if __name__ == "__main__":
    raise SystemExit(main())
