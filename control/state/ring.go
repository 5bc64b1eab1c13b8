package state

import (
	"fmt"
	"strings"
)

// maxRing is how long what is kept of a ring of keys may be, in bytes.
const maxRing = 128 << 10

// metaRing begins the names of the rows that hold rings of keys.
const metaRing = "ring/"

// RingPut records a ring of keys that all servers share, in place of the one that was recorded at IfIndex; 0: of none. Another one by
// now is ErrConflict.
type RingPut struct {
	Name    string `codec:"name"`
	Data    string `codec:"data"`
	IfIndex uint64 `codec:"if_index"`
}

func (*RingPut) kind() commandType { return typeRingPut }

func (c *RingPut) check() error {
	if c.Name == "" || len(c.Name) > MaxKeyName || strings.Contains(c.Name, "/") || !clean(c.Name) {
		return limitErrorf("name", "is not 1 to %d bytes of UTF-8 without \"/\"", MaxKeyName)
	}
	if c.Data == "" || len(c.Data) > maxRing {
		return limitErrorf("ring", "is %d bytes, 1 to %d are allowed", len(c.Data), maxRing)
	}
	return nil
}

func (c *RingPut) apply(tx *writeTx) (Result, error) {
	old, err := first[metaRow](tx.txn, tableMeta, metaRing+c.Name)
	if err != nil {
		return Result{}, err
	}
	if have := indexOf(old); have != c.IfIndex {
		return Result{}, fmt.Errorf("ring of keys %s was changed at %d: %w", c.Name, have, ErrConflict)
	}
	if err := tx.txn.Insert(tableMeta, &metaRow{Name: metaRing + c.Name, Index: tx.index, Value: c.Data}); err != nil {
		return Result{}, fmt.Errorf("write ring of keys %s: %w", c.Name, err)
	}
	return Result{Changed: 1}, nil
}

func indexOf(row *metaRow) uint64 {
	if row == nil {
		return 0
	}
	return row.Index
}

// Ring returns a ring of keys and the index at which it was recorded; "" and 0 where there is none.
func (s *Store) Ring(name string) (string, uint64, error) {
	row, err := first[metaRow](s.read(), tableMeta, metaRing+name)
	if err != nil || row == nil {
		return "", 0, err
	}
	return row.Value, row.Index, nil
}
