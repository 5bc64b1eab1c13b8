package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Limits of JSON bodies.
const (
	maxJSONBytes = 1 << 20 // of a body, unless the endpoint says otherwise
	maxJSONDepth = 32
)

// decodeBody reads a JSON object from the body into v, a pointer to a struct, and refuses what no honest client sends: a
// body over limit bytes, one that comes too slowly, nesting, duplicate keys, bytes that are not UTF-8. Unknown fields are
// left alone, as the contract wants; a name that differs from a field's by case only is an error, because it would be
// taken for the field. A missing body is an error unless optional.
func (s *Server) decodeBody(w http.ResponseWriter, r *http.Request, limit int64, optional bool, v any) error {
	if enc := r.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return api.Errorf(http.StatusUnsupportedMediaType, codeMediaType, "the body's encoding is %.20q, only identity is served", enc)
	}
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(s.cfg.BodyTimeout))
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return bodyError(err)
	}
	// Left in place, the deadline would end the request while it is served.
	_ = rc.SetReadDeadline(time.Time{})
	if len(bytes.TrimSpace(b)) == 0 {
		if optional {
			return nil
		}
		return invalid("the body is missing: a JSON object is wanted")
	}
	return decodeObject(b, v)
}

// bodyError says why a body could not be read.
func bodyError(err error) error {
	var tooBig *http.MaxBytesError
	var slow interface{ Timeout() bool }
	switch {
	case errors.As(err, &tooBig):
		return err
	case errors.As(err, &slow) && slow.Timeout():
		return api.Errorf(http.StatusRequestTimeout, codeTimeout, "the body came too slowly")
	}
	return invalid("the body broke off: %s", err)
}

// decodeObject decodes b, one JSON object, into the struct that v points to.
func decodeObject(b []byte, v any) error {
	if !utf8.Valid(b) {
		return invalid("the body is not UTF-8")
	}
	if err := checkJSON(b, fieldNames(reflect.TypeOf(v).Elem())); err != nil {
		return err
	}
	err := json.Unmarshal(b, v)
	var mismatch *json.UnmarshalTypeError
	switch {
	case errors.As(err, &mismatch):
		return invalid("field %q: %.60s does not fit, %s is wanted", mismatch.Field, mismatch.Value, jsonKind(mismatch.Type))
	case err != nil:
		return invalid("the body is not as wanted: %s", err)
	}
	return nil
}

// checkJSON walks over b: one object, nothing behind it, no key twice, not too deep, and on the first level no key that
// equals one of fields but for its case.
func checkJSON(b []byte, fields map[string]string) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	type level struct {
		keys map[string]struct{} // of an object; nil in an array
		key  bool                // the next token is a key
	}
	var stack []level
	for first := true; first || len(stack) > 0; first = false {
		tok, err := dec.Token()
		if err != nil {
			return invalid("the body is not JSON: %s", jsonProblem(err))
		}
		if first && tok != json.Delim('{') {
			return invalid("the body is not a JSON object")
		}
		top := len(stack) - 1
		switch {
		case tok == json.Delim('}') || tok == json.Delim(']'):
			stack = stack[:top]
			continue
		case top >= 0 && stack[top].key:
			key, _ := tok.(string)
			if _, twice := stack[top].keys[key]; twice {
				return invalid("field %.60q comes twice", key)
			}
			stack[top].keys[key] = struct{}{}
			if want, near := fields[strings.ToLower(key)]; top == 0 && near && want != key {
				return invalid("field %.60q is not known; is %q meant?", key, want)
			}
			stack[top].key = false
			continue
		}
		if top >= 0 && stack[top].keys != nil {
			stack[top].key = true // after this value
		}
		switch tok {
		case json.Delim('{'):
			stack = append(stack, level{keys: map[string]struct{}{}, key: true})
		case json.Delim('['):
			stack = append(stack, level{})
		}
		if len(stack) > maxJSONDepth {
			return invalid("the body nests deeper than %d levels", maxJSONDepth)
		}
	}
	if rest := bytes.TrimSpace(b[dec.InputOffset():]); len(rest) > 0 {
		return invalid("the body has more behind its JSON object")
	}
	return nil
}

func jsonProblem(err error) string {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "it breaks off"
	}
	return err.Error()
}

// fieldNames returns the JSON names of t's fields by their lower-case form.
func fieldNames(t reflect.Type) map[string]string {
	names := map[string]string{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" {
			names[strings.ToLower(name)] = name
		}
	}
	return names
}

// jsonKind says what t is in JSON.
func jsonKind(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return fmt.Sprintf("an integer of %d bits", t.Bits())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return fmt.Sprintf("a positive integer of %d bits", t.Bits())
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return "a string of base64"
		}
		return "an array"
	}
	return "an object"
}

// noContent answers 204 unless err is set.
func noContent(w http.ResponseWriter, err error) error {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}
