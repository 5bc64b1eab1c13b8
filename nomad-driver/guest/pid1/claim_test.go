package pid1

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

const exclusive = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW

func TestClaim_rootMakesForTheUserWhatIsNew(t *testing.T) {
	g := startGuest(t, guest.Boot{User: "user"})
	owner := func(name string) uint32 {
		var st unix.Stat_t
		must.NoError(t, unix.Lstat(filepath.Join(g.dir, name), &st))
		return st.Uid
	}
	_, err := g.Mkdir(g.ctx(), guest.FileRequest{Path: filepath.Join(g.dir, "app/a/b"), Parents: true, Claim: true})
	must.NoError(t, err)
	must.Eq(t, []uint32{testUID, testUID, testUID}, []uint32{owner("app"), owner("app/a"), owner("app/a/b")})
	f, _, err := g.Open(g.ctx(), guest.FileRequest{Path: filepath.Join(g.dir, "new/x"), Flags: exclusive, Parents: true, Claim: true})
	must.NoError(t, err)
	must.NoError(t, f.Close())
	must.Eq(t, []uint32{testUID, testUID}, []uint32{owner("new"), owner("new/x")})

	temp, to := filepath.Join(g.dir, guest.TempName(false)), filepath.Join(g.dir, "file")
	f, info, err := g.Open(g.ctx(), guest.FileRequest{Path: temp, Flags: exclusive, Claim: true})
	must.NoError(t, err)
	must.NoError(t, f.Close())
	must.Eq(t, "user", info.Owner)
	must.NoError(t, g.Rename(g.ctx(), guest.FileRequest{Path: temp, Target: to, Claim: true}))
	must.Eq(t, testUID, owner("file"))
	other := filepath.Join(g.dir, guest.TempName(false))
	f, _, err = g.Open(g.ctx(), guest.FileRequest{Path: other, Flags: exclusive, Claim: true})
	must.NoError(t, err)
	must.NoError(t, f.Close())
	must.NoError(t, g.Remove(g.ctx(), guest.FileRequest{Path: other, Claim: true}))
	must.FileNotExists(t, other)
}

func TestClaim_whatIsTheUsersCanBeTakenAway(t *testing.T) {
	g := startGuest(t, guest.Boot{User: "user"})
	at := func(name string) string { return filepath.Join(g.dir, name) }
	claim := func(name string) guest.FileRequest {
		return guest.FileRequest{Path: at(name), Claim: true, ClaimPath: true, Parents: true}
	}
	move := func(from, to string) error {
		req := claim(from)
		req.Target = at(to)
		return g.Rename(g.ctx(), req)
	}
	write := func(path string) {
		t.Helper()
		must.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must.NoError(t, os.WriteFile(path, []byte(path), 0o644))
		for p := path; p != g.dir; p = filepath.Dir(p) {
			must.NoError(t, os.Chown(p, int(testUID), int(testUID)))
		}
	}
	write(at("file"))
	must.NoError(t, move("file", "moved"))
	must.FileNotExists(t, at("file"))
	write(at("file"))
	must.NoError(t, move("file", "moved"), must.Sprint("over one of theirs"))
	must.NoError(t, move("moved", "new/dir/moved"), must.Sprint("into a directory that is made"))
	must.FileExists(t, at("new/dir/moved"))
	must.NoError(t, move("new", "newer"))
	must.NoError(t, os.Symlink("/etc", at("link")))
	must.NoError(t, os.Lchown(at("link"), int(testUID), int(testUID)))
	must.NoError(t, g.Remove(g.ctx(), claim("link")))
	write(at("newer/a/b/c"))
	must.NoError(t, g.Remove(g.ctx(), claim("newer")))
	must.FileNotExists(t, at("newer"))
	must.NoError(t, g.Remove(g.ctx(), claim("never")))

	refused := func(what string, err error) {
		t.Helper()
		var body *frame.ErrorBody
		must.True(t, errors.As(err, &body), must.Sprint(what, err))
		must.Eq(t, guest.CodePermission, body.Code, must.Sprint(what, body.Message))
	}
	write(at("mine"))
	must.NoError(t, os.WriteFile(at("roots"), nil, 0o644))
	must.NoError(t, os.Mkdir(at("rootdir"), 0o755))
	refused("over root's", move("mine", "roots"))
	refused("root's", move("roots", "other"))
	refused("root's directory", g.Remove(g.ctx(), claim("rootdir")))
	refused("root's file", g.Remove(g.ctx(), claim("roots")))
	refused("without a claim of the path", g.Rename(g.ctx(), guest.FileRequest{Path: at("mine"), Target: at("other"), Claim: true}))
	refused("without a claim", g.Remove(g.ctx(), guest.FileRequest{Path: at("mine")}))
	write(at("mixed/mine"))
	must.NoError(t, os.Mkdir(at("mixed/sub"), 0o755))
	must.NoError(t, os.WriteFile(at("mixed/sub/roots"), nil, 0o644))
	refused("with root's in it", g.Remove(g.ctx(), claim("mixed")))
	must.FileExists(t, at("mixed/sub/roots"))
	must.NoError(t, os.Symlink(g.dir, filepath.Join(g.home, "up")))
	refused("through a link", g.Remove(g.ctx(), guest.FileRequest{Path: filepath.Join(g.home, "up/mine"), Claim: true}))
	must.FileExists(t, at("mine"))
	must.FileExists(t, at("roots"))
	must.DirExists(t, at("rootdir"))
	must.FileNotExists(t, at("other"))
}

func TestClaim_touchesNothingElse(t *testing.T) {
	g := startGuest(t, guest.Boot{User: "user"})
	at := func(name string) string { return filepath.Join(g.dir, name) }
	must.NoError(t, os.Mkdir(at("closed"), 0o700))
	must.NoError(t, os.Mkdir(at("open"), 0o755))
	must.NoError(t, os.WriteFile(at("roots"), []byte("r"), 0o644))
	must.NoError(t, os.Symlink(g.dir, filepath.Join(g.home, "up"))) // what a process of the user could plant
	must.NoError(t, os.Symlink(at("open/dangling"), at("link")))
	temp := at(guest.TempName(false))
	must.NoError(t, os.WriteFile(temp, nil, 0o644)) // root's own
	refused := func(what string, err error) {
		t.Helper()
		var body *frame.ErrorBody
		must.True(t, errors.As(err, &body), must.Sprint(what, err))
		must.Eq(t, guest.CodePermission, body.Code, must.Sprint(what, body.Message))
	}
	open := func(path, replaces string, flags int) error {
		f, _, err := g.Open(g.ctx(), guest.FileRequest{Path: path, Target: replaces, Flags: flags, Parents: true, Claim: true})
		if err == nil {
			_ = f.Close()
		}
		return err
	}
	refused("a closed directory", open(at("closed/x"), "", exclusive))
	refused("below a closed directory", open(at("closed/a/x"), "", exclusive))
	refused("through a link", open(filepath.Join(g.home, "up/x"), "", exclusive))
	refused("new directories through a link", open(filepath.Join(g.home, "up/a/x"), "", exclusive))
	refused("a file that is there", open(at("roots"), "", unix.O_WRONLY|unix.O_TRUNC))
	refused("one that the user may not write", open(at(guest.TempName(true)), at("roots"), exclusive))
	refused("without a claim", func() error {
		_, err := g.Mkdir(g.ctx(), guest.FileRequest{Path: at("d")})
		return err
	}())
	refused("to rename another's", g.Rename(g.ctx(), guest.FileRequest{Path: temp, Target: at("y"), Claim: true}))
	refused("to rename what is no upload", g.Rename(g.ctx(), guest.FileRequest{Path: at("roots"), Target: at("y"), Claim: true}))
	refused("to remove what is no upload", g.Remove(g.ctx(), guest.FileRequest{Path: at("roots"), Claim: true}))
	for _, name := range []string{"closed/x", "x", "a", "d", "y", "open/dangling"} {
		must.FileNotExists(t, at(name))
	}
	b, err := os.ReadFile(at("roots"))
	must.NoError(t, err)
	must.Eq(t, "r", string(b))
}
