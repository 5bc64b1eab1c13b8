package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
	"unicode/utf8"
)

// eventVersion is the version of the encoding of events that this code writes. Readers accept every released one.
const eventVersion = 1

// The head of an encoded event has a fixed place for what is known last.
const (
	indexAt  = 1
	timeAt   = 9
	fieldsAt = 17
)

// fields are an event's texts in the order of the encoding.
func fields(e *Event) [10]*string {
	return [10]*string{&e.ID, &e.Tenant, &e.User, &e.Action, &e.Resource, &e.ResourceID, &e.Result, &e.Source, &e.Agent, &e.Request}
}

// appendEvent appends the one encoding of an event that clean has returned: version, index and time (8 bytes each, big endian, the
// time in nanoseconds since 1970), then each text with its length before it, then the number of details and each name and text, by
// name.
func appendEvent(b []byte, e *Event) []byte {
	b = append(b, eventVersion)
	b = binary.BigEndian.AppendUint64(b, e.Index)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Time.UnixNano()))
	for _, s := range fields(e) {
		b = appendText(b, *s)
	}
	b = binary.AppendUvarint(b, uint64(len(e.Details)))
	switch len(e.Details) {
	case 0:
	case 1:
		for k, v := range e.Details {
			b = appendText(appendText(b, k), v)
		}
	default:
		var names [maxDetails]string
		sorted := slices.AppendSeq(names[:0], maps.Keys(e.Details))
		slices.Sort(sorted)
		for _, k := range sorted {
			b = appendText(appendText(b, k), e.Details[k])
		}
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// patch puts index and time into an encoded event.
func patch(body []byte, index uint64, t time.Time) {
	binary.BigEndian.PutUint64(body[indexAt:], index)
	binary.BigEndian.PutUint64(body[timeAt:], uint64(t.UnixNano()))
}

var errShort = errors.New("it breaks off")

// decodeEvent is the inverse of appendEvent. It accepts nothing that appendEvent would not have written.
func decodeEvent(b []byte) (Event, error) {
	var e Event
	if len(b) < fieldsAt {
		return e, errShort
	}
	if len(b) > maxBody {
		return e, fmt.Errorf("it is %d bytes, at most %d are written", len(b), maxBody)
	}
	if b[0] != eventVersion {
		return e, fmt.Errorf("its encoding has version %d, this version of SoulBox reads %d", b[0], eventVersion)
	}
	e.Index = binary.BigEndian.Uint64(b[indexAt:])
	e.Time = time.Unix(0, int64(binary.BigEndian.Uint64(b[timeAt:]))).UTC()
	b = b[fieldsAt:]
	var err error
	for _, s := range fields(&e) {
		if *s, b, err = takeText(b); err != nil {
			return e, err
		}
	}
	n, b, err := takeUvarint(b)
	if err != nil {
		return e, err
	}
	if n > maxDetails {
		return e, fmt.Errorf("it has %d details, at most %d are written", n, maxDetails)
	}
	if n > 0 {
		e.Details = make(map[string]string, n)
	}
	last := ""
	for i := range n {
		var k, v string
		if k, b, err = takeText(b); err != nil {
			return e, err
		}
		if v, b, err = takeText(b); err != nil {
			return e, err
		}
		if i > 0 && k <= last {
			return e, errors.New("its details are not in order")
		}
		e.Details[k], last = v, k
	}
	if len(b) > 0 {
		return e, fmt.Errorf("%d bytes follow its end", len(b))
	}
	return e, nil
}

func takeText(b []byte) (string, []byte, error) {
	n, b, err := takeUvarint(b)
	if err != nil {
		return "", nil, err
	}
	if n > uint64(len(b)) {
		return "", nil, errShort
	}
	s := string(b[:n])
	if !utf8.ValidString(s) {
		return "", nil, errors.New("a text is not UTF-8")
	}
	return s, b[n:], nil
}

func takeUvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, errShort
	}
	if n > 1 && b[n-1] == 0 {
		return 0, nil, errors.New("a length is spelled longer than need be")
	}
	return v, b[n:], nil
}
