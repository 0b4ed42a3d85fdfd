"""The small media files shared with the tests of the data package."""

from tests.data.conftest import media_dir  # noqa: F401
