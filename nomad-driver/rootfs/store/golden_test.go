package store

// goldenDigest is the digest of rootTar(t, "golden").
const goldenDigest = "sha256:077d95fffe6892e4dc9ba7d21affd80c7273d6f1f693e277b774b8d4ea6684b7"
