package files

import (
	"net/http"
	"strconv"
	"strings"
)

// encoding chooses how a file is sent: "gzip", "identity", or "" where the client takes neither. gzip is chosen where the
// client names it and likes it no less than identity (RFC 9110, 12.5.3; identity is acceptable unless excluded).
func encoding(header http.Header) string {
	gzip, identity, star := -1.0, -1.0, -1.0
	for _, line := range header.Values("Accept-Encoding") {
		for item := range strings.SplitSeq(line, ",") {
			name, params, _ := strings.Cut(item, ";")
			q := quality(params)
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "gzip", "x-gzip":
				gzip = q
			case "identity":
				identity = q
			case "*":
				star = q
			}
		}
	}
	named := gzip >= 0
	if gzip < 0 {
		gzip = max(star, 0)
	}
	ok := identity > 0 || identity < 0 && star != 0
	switch {
	case named && gzip > 0 && gzip >= identity:
		return "gzip"
	case ok:
		return "identity"
	case gzip > 0:
		return "gzip"
	}
	return ""
}

// takesIdentity reports whether a client takes a file as it is.
func takesIdentity(header http.Header) bool {
	h := http.Header{}
	for _, line := range header.Values("Accept-Encoding") {
		for item := range strings.SplitSeq(line, ",") {
			if name, _, _ := strings.Cut(item, ";"); !strings.EqualFold(strings.TrimSpace(name), "gzip") {
				h.Add("Accept-Encoding", item)
			}
		}
	}
	return encoding(h) == "identity"
}

// quality is the weight of an item: 1 where none is given, 0 where it makes no sense.
func quality(params string) float64 {
	for p := range strings.SplitSeq(params, ";") {
		k, v, _ := strings.Cut(p, "=")
		if !strings.EqualFold(strings.TrimSpace(k), "q") {
			continue
		}
		q, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
		if err != nil || !(q >= 0 && q <= 1) {
			return 0
		}
		return q
	}
	return 1
}
