package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/soulbox-dev/soulbox/control/api"
)

const (
	tableSandbox  = "sandbox"
	tableKey      = "key"
	tableTemplate = "template"
	tableSnapshot = "snapshot"
	tableBuild    = "build"
	tableBuildLog = "build_log"
	tableQuota    = "quota"
	tableUsage    = "usage" // follows from others: in no snapshot
	tableTenant   = "tenant"
	tableRole     = "role"
	tableBinding  = "binding"
	tablePool     = "pool"
	tableSlot     = "slot"
	tableNode     = "node"
	tableSecret   = "secret"
	tableMeta     = "meta"

	indexID      = "id"
	indexName    = "name"    // secret: tenant, name
	indexCreated = "created" // sandbox: tenant, time of creation, id: the order of lists
	indexLive    = "live"    // sandbox: as indexCreated, without the ended ones
	indexEnded   = "ended"   // sandbox: time of end, id: the order of purging
	indexDigest  = "digest"  // template
	indexPool    = "pool"    // slot
	indexRequest = "request" // sandbox: the id that its create asked for, where it has another
)

// metaRow is a named number or word of the whole store.
type metaRow struct {
	Name  string `codec:"name"`
	Index uint64 `codec:"index"`
	Value string `codec:"value"`
}

const (
	metaIndex     = "index"     // Raft index of the last applied command
	metaBootstrap = "bootstrap" // id of the bootstrap key; there once it was made
)

func schema() *memdb.DBSchema {
	return &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		tableSandbox: {Name: tableSandbox, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: &memdb.StringFieldIndex{Field: "ID"}},
			indexCreated: {Name: indexCreated, Unique: true, Indexer: sandboxIndex(func(s *Sandbox) (bool, []byte) {
				return true, createdKey(s.Tenant, s.CreatedAt, s.ID)
			})},
			indexLive: {Name: indexLive, Unique: true, AllowMissing: true, Indexer: sandboxIndex(func(s *Sandbox) (bool, []byte) {
				return !s.State.Ended(), createdKey(s.Tenant, s.CreatedAt, s.ID)
			})},
			indexEnded: {Name: indexEnded, Unique: true, AllowMissing: true, Indexer: sandboxIndex(func(s *Sandbox) (bool, []byte) {
				return s.State.Ended(), createdKey("", s.EndedAt, s.ID)
			})},
			indexRequest: {Name: indexRequest, AllowMissing: true, Indexer: &memdb.StringFieldIndex{Field: "Request"}},
		}},
		tableKey: {Name: tableKey, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: &memdb.StringFieldIndex{Field: "ID"}},
		}},
		tableTemplate: {Name: tableTemplate, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: &memdb.CompoundIndex{Indexes: []memdb.Indexer{
				&memdb.StringFieldIndex{Field: "Tenant"}, &memdb.StringFieldIndex{Field: "Name"},
			}}},
			indexDigest: {Name: indexDigest, Indexer: &memdb.StringFieldIndex{Field: "Digest"}},
		}},
		tableSnapshot: {Name: tableSnapshot, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: &memdb.StringFieldIndex{Field: "ID"}},
		}},
		tableBuild: {Name: tableBuild, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: &memdb.StringFieldIndex{Field: "ID"}},
		}},
		tableBuildLog: {Name: tableBuildLog, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: &memdb.StringFieldIndex{Field: "Key"}},
		}},
		tableTenant: {Name: tableTenant, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: &memdb.StringFieldIndex{Field: "ID"}},
		}},
		tableRole: {Name: tableRole, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: &memdb.CompoundIndex{Indexes: []memdb.Indexer{
				&memdb.StringFieldIndex{Field: "Tenant"}, &memdb.StringFieldIndex{Field: "Name"},
			}}},
		}},
		tableBinding: {Name: tableBinding, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: &memdb.StringFieldIndex{Field: "ID"}},
		}},
		tableQuota: {Name: tableQuota, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: &memdb.StringFieldIndex{Field: "Tenant"}},
		}},
		tableUsage: {Name: tableUsage, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: &memdb.StringFieldIndex{Field: "Tenant"}},
		}},
		tablePool: {Name: tablePool, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: &memdb.StringFieldIndex{Field: "ID"}},
		}},
		tableSlot: {Name: tableSlot, Indexes: map[string]*memdb.IndexSchema{
			indexID:   {Name: indexID, Unique: true, Indexer: &memdb.StringFieldIndex{Field: "ID"}},
			indexPool: {Name: indexPool, Indexer: &memdb.StringFieldIndex{Field: "Pool"}},
		}},
		tableNode: {Name: tableNode, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: &memdb.StringFieldIndex{Field: "Node"}},
		}},
		tableSecret: {Name: tableSecret, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: &memdb.StringFieldIndex{Field: "ID"}},
			indexName: {Name: indexName, Unique: true, Indexer: &memdb.CompoundIndex{Indexes: []memdb.Indexer{
				&memdb.StringFieldIndex{Field: "Tenant"}, &memdb.StringFieldIndex{Field: "Name"},
			}}},
		}},
		tableMeta: {Name: tableMeta, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: &memdb.StringFieldIndex{Field: "Name"}},
		}},
	}}
}

// sandboxIndex computes an index key of a sandbox; its arguments are the key itself.
type sandboxIndex func(*Sandbox) (bool, []byte)

func (f sandboxIndex) FromObject(obj any) (bool, []byte, error) {
	s, ok := obj.(*Sandbox)
	if !ok {
		return false, nil, fmt.Errorf("table %s holds a %T", tableSandbox, obj)
	}
	there, key := f(s)
	if !there {
		return false, nil, nil // memdb keeps the old entry of an updated row where the key comes back unchanged
	}
	return true, key, nil
}

func (f sandboxIndex) FromArgs(args ...any) ([]byte, error) {
	if len(args) == 1 {
		if key, ok := args[0].([]byte); ok {
			return key, nil
		}
	}
	return nil, errors.New("a sandbox index takes one key")
}

// PrefixFromArgs lets memdb iterate a part of the index.
func (f sandboxIndex) PrefixFromArgs(args ...any) ([]byte, error) { return f.FromArgs(args...) }

// createdKey sorts by tenant, time and id. The ids' fixed length makes it prefix-free.
func createdKey(tenant string, t time.Time, id api.SandboxID) []byte {
	key := tenantKey(tenant)
	key = binary.BigEndian.AppendUint64(key, sortableNanos(t))
	return append(append(key, id...), 0)
}

func tenantKey(tenant string) []byte { return append([]byte(tenant), 0) }

// sortableNanos maps a time to a number that sorts as the time does, zero time first.
func sortableNanos(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixNano()) ^ 1<<63
}
