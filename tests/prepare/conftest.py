"""The small media files that the tests of the data package have, too."""

from tests.data.conftest import media_dir  # noqa: F401
