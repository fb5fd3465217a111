"""The model archive: planned from a config, written in one pass, verified byte for byte.

The same inputs give the same members and the same digest on any machine; in the format `zip-store` also the
same bytes.
"""

from deployer.archive.digests import DigestCache
from deployer.archive.members import Archive, Member, MemberRecord
from deployer.archive.plan import plan_archive
from deployer.archive.read import check_outline, outline_size, verify_archive
from deployer.archive.write import digest_archive, write_archive

__all__ = [
    "Archive",
    "DigestCache",
    "Member",
    "MemberRecord",
    "check_outline",
    "digest_archive",
    "outline_size",
    "plan_archive",
    "verify_archive",
    "write_archive",
]
