package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

const (
	metaCluster   = "cluster"    // id of the cluster; there once somebody led that makes one
	fileClusterID = "cluster-id" // beside the state: what it says counts before the log is read
)

// ErrCluster is in the chain of errors about a server whose folder is another cluster's.
var ErrCluster = errors.New("the state is another cluster's")

// ClusterPut gives the cluster its id, by which its servers know each other's state. It has no effect where it has one, unless Again, with which a restore keeps it.
type ClusterPut struct {
	ID    string `codec:"id"`
	Again bool   `codec:"again"`
}

func (*ClusterPut) kind() commandType { return typeClusterPut }

func (c *ClusterPut) check() error {
	if len(c.ID) != 32 || strings.Trim(c.ID, "0123456789abcdef") != "" {
		return limitErrorf("id", "%.40q is not of 32 hexadecimal digits", c.ID)
	}
	return nil
}

func (c *ClusterPut) apply(tx *writeTx) (Result, error) {
	old, err := first[metaRow](tx.txn, tableMeta, metaCluster)
	if err != nil {
		return Result{}, err
	}
	if old != nil && (!c.Again || old.Value == c.ID) {
		return Result{}, nil
	}
	if err := tx.txn.Insert(tableMeta, &metaRow{Name: metaCluster, Index: tx.index, Value: c.ID}); err != nil {
		return Result{}, fmt.Errorf("write id of the cluster: %w", err)
	}
	return Result{Changed: 1}, nil
}

// clusterID returns the id of the cluster; "" where it has none yet.
func (s *Store) clusterID() (string, error) {
	row, err := first[metaRow](s.read(), tableMeta, metaCluster)
	if err != nil || row == nil {
		return "", err
	}
	return row.Value, nil
}

// knownCluster is whose this server's folder is. Raft applies nothing of the log before it hears from somebody who leads, so the folder has to say it.
type knownCluster struct {
	path string // empty: kept in memory

	mu sync.Mutex
	id string
}

func openKnownCluster(dir string) (*knownCluster, error) {
	if dir == "" {
		return &knownCluster{}, nil
	}
	k := &knownCluster{path: filepath.Join(dir, fileClusterID)}
	b, err := os.ReadFile(k.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read id of the cluster: %w", err)
	}
	k.id = strings.TrimSpace(string(b))
	return k, nil
}

func (k *knownCluster) get() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.id
}

// learn keeps what the tables say.
func (k *knownCluster) learn(id string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if id == "" || id == k.id {
		return nil
	}
	if k.path != "" {
		if err := WriteFileDurably(k.path, []byte(id+"\n"), 0o600); err != nil {
			return err
		}
	}
	k.id = id
	return nil
}

// nameCluster gives the cluster, which this server leads, an id where it has none.
func (s *Server) nameCluster(ctx context.Context) {
	id, err := s.clusterID()
	if err == nil && id == "" {
		_, err = s.Apply(ctx, &ClusterPut{ID: randomHex()})
	}
	if err != nil && ctx.Err() == nil {
		s.log.Warn("the cluster has no id yet", "error", err)
	}
}

// sameCluster returns an error with ErrCluster where a server that can be asked says that it is of another cluster than this server's folder. It comes before Raft: with
// another log, and a later term, this server would disturb those that do well.
func (s *Server) sameCluster(ctx context.Context) error {
	own := s.known.get()
	if own == "" || s.streams == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	addrs, err := s.others(ctx)
	if err != nil {
		s.log.Debug("other servers are not known yet", "error", err)
	}
	answers := make(chan error, len(addrs))
	for _, addr := range addrs {
		go func() { answers <- s.clusterOf(ctx, addr, own) }()
	}
	var all error
	for range addrs {
		all = errors.Join(all, <-answers)
	}
	return all
}

func (s *Server) clusterOf(ctx context.Context, addr, own string) error {
	st, err := s.askStats(ctx, addr)
	if err != nil || st.Cluster == "" { // nobody is there, or one that is older
		return nil
	}
	return differs(own, "this server", st.Cluster, fmt.Sprintf("server %s at %s", st.ID, addr))
}

// differs says that two servers are of two clusters.
func differs(id, who, other, whose string) error {
	if id == "" || other == "" || id == other {
		return nil
	}
	return fmt.Errorf("%w: %s has that of cluster %s, and %s is of cluster %s; with an empty data_dir it can join", ErrCluster, who, id, whose, other)
}
