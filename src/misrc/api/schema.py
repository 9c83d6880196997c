"""The tables, and the steps by which a database of any earlier release becomes this one.

The steps are plain SQL in order, run by ten lines of our own rather than by alembic: there is one schema for both
databases, nothing is generated, and an operator can read what happens to his data. A step is never edited after a
release; a test holds the sum of all steps equal to the tables below.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Connection, Float, Integer, LargeBinary, MetaData, Table, Text, text

from ..job.errors import BadRequest

METADATA = MetaData()

JOBS = Table(
    "jobs",
    METADATA,
    Column("number", BigInteger, primary_key=True),  # the order of registration
    Column("job", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("site", Text, nullable=False),
    Column("program", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("signature", Text),
    Column("files", BigInteger, nullable=False),  # announced by the spec
    Column("bytes", BigInteger, nullable=False),
    Column("manifest", Text),  # of the inputs, from the release on
    Column("state", Text, nullable=False),
    Column("outcome", Text),
    Column("reason", Text),
    Column("since", Float, nullable=False),
    Column("created", Float, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("released", Float),
    Column("cancel", Integer, nullable=False),
    Column("agent", Text),
    Column("fence", BigInteger, nullable=False),
    Column("lease", Float),
    Column("confirmed", Integer, nullable=False),  # the holder has said that it works on it
    Column("progress", Text),
    Column("log_bytes", BigInteger, nullable=False),
    Column("ending", Text),  # the outcome that the site told, while results are still coming
    Column("ending_reason", Text),
    Column("ending_since", Float),
    Column("out_manifest", Text),
    Column("receipt", Text),
    Column("receipt_signature", Text),
    Column("delivery", Text),  # what of the files has moved, where a client of the predecessor moves them
    Column("old", Text),  # what a client of the predecessor registered, without the files
    Column("purged", Integer, nullable=False),  # its files are gone from the spool
)

FILES = Table(
    "files",
    METADATA,
    Column("job", Text, primary_key=True),
    Column("side", Text, primary_key=True),  # "in" or "out"
    Column("number", BigInteger, primary_key=True),  # names the file in the spool
    Column("name", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("whole", Integer, nullable=False),  # all bytes are here and are the right ones
    Column("content", LargeBinary),  # small files lie here and not in the spool
    Column("media", Text),  # the two words of the predecessor's file type
)

# What is left of a job whose record was deleted: its id, so that nothing ever begins under it again.
GONE = Table(
    "gone",
    METADATA,
    Column("job", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("deleted", Float, nullable=False),
)

TOKENS = Table(
    "tokens",
    METADATA,
    Column("number", BigInteger, primary_key=True),
    Column("name", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("sites", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
)

SEEN = Table(
    "seen",
    METADATA,
    Column("site", Text, primary_key=True),
    Column("owner", Text, primary_key=True),
    Column("agent", Text, primary_key=True),
    Column("seen", Float, nullable=False),
    Column("hello", Text),
)

CHANGES = Table(
    "changes",
    METADATA,
    Column("number", BigInteger, primary_key=True),
    Column("origin", Text, nullable=False),
    Column("topic", Text, nullable=False),
)

_FIRST = (
    """CREATE TABLE jobs (number {serial}, job TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, site TEXT NOT NULL,
    program TEXT NOT NULL, spec TEXT NOT NULL, signature TEXT, files BIGINT NOT NULL, bytes BIGINT NOT NULL,
    manifest TEXT, state TEXT NOT NULL, outcome TEXT, reason TEXT, since {real} NOT NULL, created {real} NOT NULL,
    version BIGINT NOT NULL, released {real}, cancel INTEGER NOT NULL, agent TEXT, fence BIGINT NOT NULL, lease {real},
    confirmed INTEGER NOT NULL, progress TEXT, log_bytes BIGINT NOT NULL, ending TEXT, ending_reason TEXT,
    ending_since {real}, out_manifest TEXT, receipt TEXT, receipt_signature TEXT, delivery TEXT, old TEXT,
    purged INTEGER NOT NULL)""",
    "CREATE INDEX jobs_by_site ON jobs (site, owner, state)",
    "CREATE INDEX jobs_by_owner ON jobs (owner, number)",
    "CREATE INDEX jobs_by_state ON jobs (state)",
    """CREATE TABLE files (job TEXT NOT NULL, side TEXT NOT NULL, number BIGINT NOT NULL, name TEXT NOT NULL,
    size BIGINT NOT NULL, sha256 TEXT NOT NULL, whole INTEGER NOT NULL, content {blob}, media TEXT,
    PRIMARY KEY (job, side, number), UNIQUE (job, side, name))""",
    "CREATE INDEX files_unfinished ON files (job) WHERE whole = 0",
    """CREATE TABLE tokens (number {serial}, name TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, scopes TEXT NOT NULL,
    sites TEXT NOT NULL, digest TEXT NOT NULL UNIQUE, created {real} NOT NULL, expires {real}, revoked {real})""",
    """CREATE TABLE seen (site TEXT NOT NULL, owner TEXT NOT NULL, agent TEXT NOT NULL, seen {real} NOT NULL,
    hello TEXT, PRIMARY KEY (site, owner, agent))""",
    "CREATE TABLE changes (number {serial}, origin TEXT NOT NULL, topic TEXT NOT NULL)",
)

_SECOND = (
    "CREATE TABLE gone (job TEXT NOT NULL PRIMARY KEY, owner TEXT NOT NULL, deleted {real} NOT NULL)",
    "CREATE INDEX jobs_past ON jobs (state, purged, since)",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _SECOND)

_WORDS = {
    "sqlite": {"serial": "INTEGER PRIMARY KEY AUTOINCREMENT", "real": "REAL", "blob": "BLOB"},
    "postgresql": {
        "serial": "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY",
        "real": "DOUBLE PRECISION",
        "blob": "BYTEA",
    },
}
_LOCK = 0x6D697372  # any number of our own: two servers that start together migrate one after the other


def migrate(connection: Connection) -> None:
    """Bring the database to this release, in the caller's transaction; BadRequest where it is a later one's."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    connection.execute(text("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)"))
    version = connection.execute(text("SELECT max(version) FROM schema_version")).scalar() or 0
    if version > len(MIGRATIONS):
        raise BadRequest("the database was written by a later release of misrc; install that one, or restore a backup")
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        for statement in statements:
            connection.execute(text(statement.format(**_WORDS[connection.dialect.name])))
        connection.execute(text("INSERT INTO schema_version (version) VALUES (:version)"), {"version": number})
