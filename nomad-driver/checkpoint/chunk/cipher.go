package chunk

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
)

// cipherMark begins what is encrypted. Nothing that an earlier version stored begins so: that is zstd, whose mark is another, and is
// read as it is, since its hash or its seal says whether it is right.
var cipherMark = []byte("sbx1")

// aead is AES-256-GCM with a key of the tenant's.
func (t tenant) aead() cipher.AEAD {
	key := t.hash([]byte("key that content is encrypted with"))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // the key has 32 bytes
	}
	a, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // the block has 16 bytes
	}
	return a
}

// encrypt makes b unreadable for whoever has the backend alone, and of use under its name only.
func (t tenant) encrypt(name string, b []byte) []byte {
	a := t.aead()
	out := make([]byte, len(cipherMark)+a.NonceSize(), len(cipherMark)+a.NonceSize()+len(b)+a.Overhead())
	copy(out, cipherMark)
	nonce := out[len(cipherMark):]
	_, _ = rand.Read(nonce) // never fails
	return a.Seal(out, nonce, b, []byte(name))
}

func (t tenant) decrypt(name string, b []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(b, cipherMark)
	if !ok {
		return b, nil
	}
	a := t.aead()
	if len(rest) < a.NonceSize() {
		return nil, fmt.Errorf("%w: %s is cut off", ErrBad, name)
	}
	out, err := a.Open(nil, rest[:a.NonceSize()], rest[a.NonceSize():], []byte(name))
	if err != nil {
		return nil, fmt.Errorf("%w: %s is not what was stored", ErrBad, name)
	}
	return out, nil
}
