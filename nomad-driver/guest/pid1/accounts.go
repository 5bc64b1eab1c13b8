package pid1

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// Bounds of what is read of a sandbox's account files, which it may have filled with anything.
const (
	maxAccounts = 1 << 20 // bytes of a file
	maxAccount  = 64 << 10
	maxGroups   = 256 // supplementary groups of a user
	maxName     = 256
)

// idRange is how many user and group ids a sandbox has; larger ones cannot be mapped.
const idRange = 65536

// accounts are the users and groups of the sandbox, as its files have them now.
type accounts struct {
	passwd, group []byte
}

// readAccounts reads the account files. A file that is missing or no regular file counts as empty.
func readAccounts() accounts {
	return accounts{passwd: readSmall("/etc/passwd"), group: readSmall("/etc/group")}
}

func readSmall(path string) []byte {
	fd, err := openAt(path, unix.O_RDONLY, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	buf := make([]byte, 0, min(max(st.Size, 512), maxAccounts)+1)
	for len(buf) < maxAccounts {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			break
		}
		buf = buf[:len(buf)+n]
	}
	return buf
}

// lines calls f with the colon-separated fields of every line that has want of them, until f returns false. Lines that are
// too long or too short are skipped.
func lines(file []byte, want int, f func([][]byte) bool) {
	for len(file) > 0 {
		line := file
		if i := bytes.IndexByte(file, '\n'); i >= 0 {
			line, file = file[:i], file[i+1:]
		} else {
			file = nil
		}
		if len(line) > maxAccount || len(line) == 0 || line[0] == '#' {
			continue
		}
		if fields := bytes.Split(line, []byte{':'}); len(fields) >= want && len(fields[0]) > 0 && len(fields[0]) <= maxName {
			if !f(fields) {
				return
			}
		}
	}
}

func parseID(b []byte) (uint32, bool) {
	n, err := strconv.ParseUint(string(b), 10, 32)
	return uint32(n), err == nil && n < idRange
}

// user finds a user by name or number. A number without an entry is a user too: its group is the same number and its home
// is /.
func (a accounts) user(name string) (guest.UserInfo, bool) {
	num, isNum := parseID([]byte(name))
	var found guest.UserInfo
	ok := false
	lines(a.passwd, 7, func(f [][]byte) bool {
		uid, ok1 := parseID(f[2])
		gid, ok2 := parseID(f[3])
		if !ok1 || !ok2 || string(f[0]) != name && !(isNum && uid == num) {
			return true
		}
		found = guest.UserInfo{Name: string(f[0]), UID: uid, GID: gid, Home: string(f[5]), Shell: string(f[6])}
		ok = true
		return string(f[0]) != name // a name that looks like a number wins over the number
	})
	if !ok && name == "root" {
		found, ok = guest.UserInfo{Name: "root", Home: "/root"}, true
	}
	if !ok && isNum {
		found, ok = guest.UserInfo{Name: name, UID: num, GID: num}, true
	}
	if !ok {
		return guest.UserInfo{}, false
	}
	if !strings.HasPrefix(found.Home, "/") || strings.IndexByte(found.Home, 0) >= 0 {
		found.Home = "/"
	}
	if !strings.HasPrefix(found.Shell, "/") || strings.IndexByte(found.Shell, 0) >= 0 {
		found.Shell = "/bin/sh"
	}
	return found, true
}

// groupID finds a group by name or number.
func (a accounts) groupID(name string) (uint32, bool) {
	gid, ok := parseID([]byte(name))
	lines(a.group, 3, func(f [][]byte) bool {
		if string(f[0]) != name {
			return true
		}
		if id, good := parseID(f[2]); good {
			gid, ok = id, true
			return false
		}
		return true
	})
	return gid, ok
}

// groupsOf returns the supplementary groups of a user.
func (a accounts) groupsOf(name string) []uint32 {
	var ids []uint32
	lines(a.group, 4, func(f [][]byte) bool {
		gid, ok := parseID(f[2])
		if !ok {
			return true
		}
		for m := range bytes.SplitSeq(f[3], []byte{','}) {
			if string(m) == name {
				ids = append(ids, gid)
				break
			}
		}
		return len(ids) < maxGroups
	})
	return ids
}

// lookup resolves "user", "user:group", ":group" or "", by names or numbers; def is the user where none is named.
func (a accounts) lookup(spec, def string) (guest.UserInfo, error) {
	if len(spec) > 2*maxName || strings.IndexByte(spec, 0) >= 0 {
		return guest.UserInfo{}, fail(guest.CodeBadRequest, "user is longer than %d bytes or has a NUL byte", 2*maxName)
	}
	name, group, hasGroup := strings.Cut(spec, ":")
	if name == "" {
		var defGroup string
		if name, defGroup, _ = strings.Cut(def, ":"); !hasGroup && defGroup != "" {
			group, hasGroup = defGroup, true
		}
	}
	if name == "" {
		name = "root"
	}
	u, ok := a.user(name)
	if !ok {
		return guest.UserInfo{}, fail(guest.CodeUnknownUser, "user %q does not exist in the sandbox", name)
	}
	u.Groups = a.groupsOf(u.Name)
	if hasGroup {
		if u.GID, ok = a.groupID(group); !ok {
			return guest.UserInfo{}, fail(guest.CodeUnknownUser, "group %q does not exist in the sandbox", group)
		}
	}
	return u, nil
}

// names maps ids to names, for listings.
type names struct{ users, groups map[uint32]string }

func (a accounts) names() names {
	n := names{users: map[uint32]string{}, groups: map[uint32]string{}}
	fill := func(m map[uint32]string, file []byte) {
		lines(file, 3, func(f [][]byte) bool {
			if id, ok := parseID(f[2]); ok {
				if _, dup := m[id]; !dup {
					m[id] = string(f[0])
				}
			}
			return true
		})
	}
	fill(n.users, a.passwd)
	fill(n.groups, a.group)
	return n
}

func (n names) user(id uint32) string  { return nameOr(n.users, id) }
func (n names) group(id uint32) string { return nameOr(n.groups, id) }

func nameOr(m map[uint32]string, id uint32) string {
	if s, ok := m[id]; ok {
		return s
	}
	return fmt.Sprint(id)
}
