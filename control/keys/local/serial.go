package local

import (
	"crypto/rand"
	"fmt"
	"math/big"
)

// newSerial returns a random positive number of 127 bits: RFC 5280 wants them unique and at most 20 octets long.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}
