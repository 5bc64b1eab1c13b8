package state

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/go-memdb"
	"github.com/hashicorp/raft"
)

// A snapshot is the magic word with the version of the format as its last byte, then records: type (1 byte), length
// (4 bytes, big endian), msgpack. The end record holds the number of records before it, so that a cut file is noticed.
const (
	snapshotMagic   = "soulbox"
	snapshotVersion = 1
	maxRecordBytes  = 4 << 20
)

// recordType numbers are never used again for something else.
type recordType uint8

const (
	recordMeta     recordType = 1
	recordSandbox  recordType = 2
	recordKey      recordType = 3
	recordTemplate recordType = 4
	recordSnapshot recordType = 20
	recordBuild    recordType = 21
	recordBuildLog recordType = 22
	recordTenant   recordType = 10
	recordRole     recordType = 11
	recordBinding  recordType = 12
	recordQuota    recordType = 30
	recordPool     recordType = 50
	recordSlot     recordType = 51
	recordNode     recordType = 60
	recordSecret   recordType = 70
	recordEnd      recordType = 255
)

// snapshotTables are written in this order, each in the order of its id index: equal tables make equal snapshots.
var snapshotTables = []struct {
	record recordType
	table  string
	row    func() any
}{
	{recordMeta, tableMeta, func() any { return new(metaRow) }},
	{recordSandbox, tableSandbox, func() any { return new(Sandbox) }},
	{recordKey, tableKey, func() any { return new(Key) }},
	{recordTemplate, tableTemplate, func() any { return new(Template) }},
	{recordSnapshot, tableSnapshot, func() any { return new(Snapshot) }},
	{recordBuild, tableBuild, func() any { return new(Build) }},
	{recordBuildLog, tableBuildLog, func() any { return new(buildChunk) }},
	{recordTenant, tableTenant, func() any { return new(Tenant) }},
	{recordRole, tableRole, func() any { return new(Role) }},
	{recordBinding, tableBinding, func() any { return new(Binding) }},
	{recordQuota, tableQuota, func() any { return new(Quota) }},
	{recordPool, tablePool, func() any { return new(Pool) }},
	{recordSlot, tableSlot, func() any { return new(Slot) }},
	{recordNode, tableNode, func() any { return new(NodeMark) }},
	{recordSecret, tableSecret, func() any { return new(Secret) }},
}

type fsmSnapshot struct {
	txn *memdb.Txn
}

// Persist implements raft.FSMSnapshot.
func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := writeSnapshot(sink, s.txn); err != nil {
		return errors.Join(fmt.Errorf("write snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (s *fsmSnapshot) Release() { s.txn.Abort() }

func writeSnapshot(w io.Writer, txn *memdb.Txn) error {
	b := bufio.NewWriterSize(w, 64<<10)
	if _, err := b.WriteString(snapshotMagic + string(rune(snapshotVersion))); err != nil {
		return err
	}
	var count uint64
	for _, t := range snapshotTables {
		it, err := txn.Get(t.table, indexID)
		if err != nil {
			return fmt.Errorf("table %s: %w", t.table, err)
		}
		for row := it.Next(); row != nil; row = it.Next() {
			if err := writeRecord(b, t.record, row); err != nil {
				return fmt.Errorf("table %s: %w", t.table, err)
			}
			count++
		}
	}
	if err := writeRecord(b, recordEnd, count); err != nil {
		return err
	}
	return b.Flush()
}

func writeRecord(w io.Writer, t recordType, row any) error {
	body, err := encode(row)
	if err != nil {
		return err
	}
	head := binary.BigEndian.AppendUint32([]byte{byte(t)}, uint32(len(body)))
	if _, err := w.Write(head); err != nil {
		return err
	}
	_, err = w.Write(body)
	return err
}

// readSnapshot returns new tables with what r holds.
func readSnapshot(r io.Reader) (*memdb.MemDB, error) {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		return nil, err
	}
	b := bufio.NewReaderSize(r, 64<<10)
	head := make([]byte, len(snapshotMagic)+1)
	if _, err := io.ReadFull(b, head); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if string(head[:len(snapshotMagic)]) != snapshotMagic {
		return nil, errors.New("this is no snapshot of SoulBox's state")
	}
	if v := head[len(snapshotMagic)]; v != snapshotVersion {
		return nil, fmt.Errorf("format version %d; this version of SoulBox reads %d", v, snapshotVersion)
	}
	txn := db.Txn(true)
	defer txn.Abort()
	for count := uint64(0); ; count++ {
		t, body, err := readRecord(b)
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", count, err)
		}
		if t == recordEnd {
			var want uint64
			if err := decode(body, &want); err != nil {
				return nil, fmt.Errorf("end record: %w", err)
			}
			if want != count {
				return nil, fmt.Errorf("it holds %d records, its end says %d", count, want)
			}
			if err := recount(txn); err != nil {
				return nil, err
			}
			txn.Commit()
			return db, nil
		}
		if err := restoreRecord(txn, t, body); err != nil {
			return nil, fmt.Errorf("record %d: %w", count, err)
		}
	}
}

func readRecord(r io.Reader) (recordType, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxRecordBytes {
		return 0, nil, fmt.Errorf("length %d exceeds %d", n, maxRecordBytes)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, err
	}
	return recordType(head[0]), body, nil
}

func restoreRecord(txn *memdb.Txn, t recordType, body []byte) error {
	for _, table := range snapshotTables {
		if table.record != t {
			continue
		}
		row := table.row()
		if err := decode(body, row); err != nil {
			return err
		}
		if err := txn.Insert(table.table, row); err != nil {
			return fmt.Errorf("table %s: %w", table.table, err)
		}
		return nil
	}
	return fmt.Errorf("type %d is unknown to this version of SoulBox", t)
}
