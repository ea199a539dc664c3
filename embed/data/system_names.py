"""Names of folders and files that an operating system or a device creates beside pictures.

Thumbnails, deleted pictures and snapshots of a network drive are copies of a user's pictures and
would become landmarks of their own. The names are those that photo managers and synchronising
programs ignore by default (PhotoPrism, Immich, digiKam, Syncthing, GitHub's gitignore templates).
Upper and lower case are equal. Names that start with a dot are ignored in any case; those listed
here are folders full of pictures, so they are counted.
"""

from __future__ import annotations

import re

_FOLDERS = frozenset(
    {
        # Synology, QNAP, NetApp: thumbnails, deleted files, snapshots, service folders
        "@eadir", "#recycle", "#snapshot", "@tmp", "@sharebin", "@synoresource",
        ".@__thumb", "@recycle", "@recently-snapshot", ".@upload_cache", "~snapshot",
        # Windows
        "$recycle.bin", "recycler", "system volume information",
        # macOS
        "__macosx", ".trashes", ".appledouble", "network trash folder", "temporary items",
        # Linux, Android
        "lost+found", ".thumbnails", ".thumbs", "lost.dir",
        # Picasa, digiKam, iTunes
        ".picasaoriginals", ".dtrash", "ipod photo cache",
    }
)  # fmt: skip
# Lightroom's previews, the libraries of Apple Photos, iPhoto and Aperture, and numbered folders:
# freedesktop.org's .Trash-1000, files saved by Windows' disk check.
_FOLDER_PATTERN = re.compile(
    r".+\.(lrdata|photoslibrary|photolibrary|aplibrary|migratedphotolibrary)"
    r"|\.trash-\d+|found\.\d{3}"
)
_FILES = frozenset(
    {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "zbthumbnail.info"}
)


def is_system_name(name: str, *, folder: bool) -> bool:
    """True if a folder or file with this name belongs to a system or a device.

    Args:
        name: the name without the folders above.
        folder: True for a folder.
    """
    plain = name.casefold()
    if not folder:
        return plain in _FILES
    return plain in _FOLDERS or _FOLDER_PATTERN.fullmatch(plain) is not None
