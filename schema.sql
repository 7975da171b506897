-- The tables of aiolease for MySQL 8.0 and MariaDB 10.6, or newer.
--
-- aiolease creates them at first use if they are missing and if its database user may. Where it may not, run this
-- file once by hand; `python -m aiolease schema` prints it. It may be run again without harm. Tools that compare a
-- schema with models (Alembic's autogenerate) must leave these tables alone.
--
-- Every moment is UTC by the database's own clock, UTC_TIMESTAMP(6). Names are compared byte for byte.

-- Which term may still commit. Written by claims and by fenced commits only, so that neither ever waits for a
-- heartbeat. It also remembers the highest token of a lease whose row was deleted.
CREATE TABLE IF NOT EXISTS aiolease_fence (
    name    VARCHAR(100) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    holder  VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NULL,      -- of the latest claim
    token   BIGINT UNSIGNED NOT NULL,                                     -- of the latest claim
    fence   BIGINT UNSIGNED NOT NULL DEFAULT 0,                           -- counts the fenced commits
    PRIMARY KEY (name)
) ENGINE = InnoDB;

-- One row per lease; it is never deleted.
CREATE TABLE IF NOT EXISTS aiolease_lease (
    name         VARCHAR(100) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    holder       VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NULL, -- host-pid-uuid4hex; NULL: released
    token        BIGINT UNSIGNED NOT NULL,                                -- the fencing token: rises with every term
    beat         BIGINT UNSIGNED NOT NULL,                                -- the number of the latest renewal
    elected_at   DATETIME(6) NOT NULL,                                    -- when the term began
    renewed_at   DATETIME(6) NOT NULL,                                    -- when it was last renewed
    expires_at   DATETIME(6) NOT NULL,                                    -- from when on another may claim it
    resign_token BIGINT UNSIGNED NULL,                                    -- the term that was asked to resign
    PRIMARY KEY (name)
) ENGINE = InnoDB;

-- The version of this schema, as the token of a row that no lease can be named like, since it has a space.
INSERT INTO aiolease_lease (name, token, beat, elected_at, renewed_at, expires_at)
VALUES ('schema version', 1, 0, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))
ON DUPLICATE KEY UPDATE token = token;
