package boot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

func TestHosts_knowTheHostName(t *testing.T) {
	const local = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
	for _, tt := range []struct {
		name, old string
		exists    bool
		want      string
	}{
		{"missing", "", false, local + "127.0.1.1 box\n"},
		{"empty", " \n", true, local + "127.0.1.1 box\n"},
		{"another's", "10.0.0.1 db\n", true, "10.0.0.1 db\n127.0.1.1 box\n"},
		{"no newline at its end", "10.0.0.1 db", true, "10.0.0.1 db\n127.0.1.1 box\n"},
		{"there already", "127.0.0.1 localhost box # us\n", true, "127.0.0.1 localhost box # us\n"},
		{"only in a comment", "127.0.0.1 a # box\n", true, "127.0.0.1 a # box\n127.0.1.1 box\n"},
		{"only as an address", "box a\n", true, "box a\n127.0.1.1 box\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := string(hosts([]byte(tt.old), tt.exists, "box")); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestRewrite_leavesLinksAndOddFilesAlone(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	link, fifo, big := filepath.Join(dir, "link"), filepath.Join(dir, "fifo"), filepath.Join(dir, "big")
	if err := os.WriteFile(target, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(big, make([]byte, maxNameFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, fifo, big} {
		if err := rewrite(path, func([]byte, bool) []byte { return []byte("changed") }); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if b, err := os.ReadFile(target); err != nil || string(b) != "mine" {
		t.Errorf("the link's target is %q, %v", b, err)
	}
	if st, err := os.Stat(big); err != nil || st.Size() != maxNameFile+1 {
		t.Errorf("the large file is %v, %v", st, err)
	}
}

// TestOpenDevice_takesOnlyTheDevice swaps /dev/null for what attackers put there.
func TestOpenDevice_takesOnlyTheDevice(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link, "/dev/zero", filepath.Join(dir, "none")} {
		if fd, err := openDevice(path, unix.Mkdev(1, 3)); err == nil {
			t.Errorf("%s was taken for /dev/null", path)
			unix.Close(fd)
		}
	}
	fd, err := openDevice("/dev/null", unix.Mkdev(1, 3))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
}

func TestCheck_namesWhatIsWrong(t *testing.T) {
	good := guest.Boot{
		Version: guest.ProtocolVersion, Profile: ProfileStrict, MountPoint: ".", Seccomp: make([]byte, 8), TmpBytes: 1, ShmBytes: 1, TmpInodes: 1,
	}
	if err := check(&good); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*guest.Boot){
		"version":     func(b *guest.Boot) { b.Version = 99 },
		"profile":     func(b *guest.Boot) { b.Profile = "" },
		"mount point": func(b *guest.Boot) { b.MountPoint = "" },
		"seccomp":     func(b *guest.Boot) { b.Seccomp = nil },
		"tmp_bytes":   func(b *guest.Boot) { b.TmpBytes = -1 },
		"files: 17":   func(b *guest.Boot) { b.Files = make([]guest.BootFile, 17) },
		"files[1].path": func(b *guest.Boot) {
			b.Files = []guest.BootFile{{Path: "/run/a"}, {Path: "/run/../etc/passwd"}}
		},
		"files[0].content": func(b *guest.Boot) {
			b.Files = []guest.BootFile{{Path: "/a", Content: strings.Repeat("x", guest.MaxBootFileBytes+1)}}
		},
	} {
		b := good
		change(&b)
		if err := check(&b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %q", err, want)
		}
	}
}
