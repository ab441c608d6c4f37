import sys

from sobook.cli import main

sys.exit(main())
