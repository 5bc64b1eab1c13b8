// Package audit keeps what was changed, by whom, and what was refused, so that nobody can alter it unseen.
//
// It owns the log's format on disk, the chain of hashes through it, the signed heads of that chain, and their verification. It
// never decides what is allowed, and never holds the key that signs: that is behind Signer. DESIGN.md tells more.
package audit
