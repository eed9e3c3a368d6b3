"""``python -m fasa_py`` is the ``fasa`` command."""

from .cli import main

raise SystemExit(main())
