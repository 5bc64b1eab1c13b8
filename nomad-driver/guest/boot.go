package guest

// Boot is the first message that a new PID 1 gets: one JSON frame (frame.Request) on BootFD, with the descriptors of
// BootFDs in that order beside it (SCM_RIGHTS). PID 1 sets its world up, answers with one BootReply (frame.Response) or an
// Error frame, and closes BootFD. Nothing of it is visible to the processes of the sandbox.
type Boot struct {
	Version   int    `json:"version"`
	SandboxID string `json:"sandbox_id"`
	Hostname  string `json:"hostname"`
	// MountPoint is a directory of the host, visible before the pivot, on which the new root is attached; "." where PID 1
	// was started in it, because nobody but the host's root may pass the directories above it.
	MountPoint string   `json:"mount_point"`
	User       string   `json:"user,omitempty"` // default user of processes; empty is root
	Cwd        string   `json:"cwd,omitempty"`  // default working directory; empty is the user's home
	Env        []string `json:"env,omitempty"`  // default environment of every process
	TmpBytes   int64    `json:"tmp_bytes"`      // size limit of /tmp
	ShmBytes   int64    `json:"shm_bytes"`      // size limit of /dev/shm
	TmpInodes  int64    `json:"tmp_inodes"`     // inode limit of /tmp and /dev/shm each

	Profile      string   `json:"profile"`      // "default" or "strict" (no_new_privs, vmsplice denied, …)
	Capabilities uint64   `json:"capabilities"` // mask of the capabilities kept in the bounding, permitted and inheritable-to-root sets
	Landlock     bool     `json:"landlock"`     // put processes into a Landlock domain, where the kernel has it
	Seccomp      []byte   `json:"seccomp"`      // a compiled BPF program: sock_filter records, native endian
	Rlimits      []Rlimit `json:"rlimits,omitempty"`
	MaskPaths    []string `json:"mask_paths,omitempty"`     // hidden behind /dev/null or an empty directory
	ReadonlyPath []string `json:"readonly_paths,omitempty"` // remounted read-only

	Files []BootFile `json:"files,omitempty"` // written before anything runs

	// Given are mounts of the host that the sandbox gets; their descriptors follow the others, in this order. At most MaxGiven.
	Given []Given `json:"given,omitempty"`

	Main *Start `json:"main,omitempty"` // the sandbox's own command: when it ends, the sandbox ends with its exit status
}

// Rlimit is one setrlimit(2) call.
type Rlimit struct {
	Resource int    `json:"resource"`
	Soft     uint64 `json:"soft"`
	Hard     uint64 `json:"hard"`
}

// BootFile is a small file by which programs learn about their sandbox. It is root's, and readable by all.
type BootFile struct {
	Path    string `json:"path"` // absolute and clean; directories that are missing are made
	Content string `json:"content"`
	// Replace takes away what stands there and is no regular file, a link for example. Otherwise that is left alone.
	Replace bool `json:"replace,omitempty"`
	// Append adds to what is there. It is for a file that only ever grows, such as a list of certificates.
	Append bool `json:"append,omitempty"`
}

// Bounds of Boot.Files.
const (
	MaxBootFiles     = 16
	MaxBootFileBytes = 4 << 10
)

// Given is a detached mount of one thing of the host, which the node has chosen and whose attributes it has set.
type Given struct {
	Path string `json:"path"`          // where it is inside: absolute and clean, without a link on the way; what is missing is made
	Dir  bool   `json:"dir,omitempty"` // it is a directory, else a file or a device
}

// MaxGiven bounds Boot.Given.
const MaxGiven = 64

// BootFD is the descriptor number of the boot socket in a new PID 1.
const BootFD = 3

// The descriptors that accompany Boot, in this order.
const (
	BootFDRoot     = iota // detached mount of the root file system (overlay)
	BootFDListener        // listening guest socket, bound by the node outside the sandbox
	BootFDExit            // write-only file for the exit record, made by the node outside the sandbox
	BootFDInit            // detached read-only mount of the init binary that PID 1 runs from; it ends up at InitPath
	BootFDCount
)

// InitPath is where PID 1's own binary is visible inside, read-only. A checkpoint needs it there.
const InitPath = "/.soulbox/init"

// BootReply tells that PID 1 serves, and how long each step took.
type BootReply struct {
	Main  ProcessID `json:"main,omitempty"`
	Steps []Step    `json:"steps"`
}

// Step is one timed step of a start, in nanoseconds.
type Step struct {
	Name  string `json:"name"`
	Nanos int64  `json:"nanos"`
}

// ExitRecordVersion is the version that PID 1 writes. Readers accept every released one.
const ExitRecordVersion = 1

// ExitRecord is what PID 1 writes, as one JSON line, into the exit file before it exits. A file that is empty or has no
// newline at its end means that PID 1 was killed before it could write.
type ExitRecord struct {
	Version   int    `json:"version"`
	SandboxID string `json:"sandbox_id"`
	Reason    string `json:"reason"`           // ReasonMainExited, ReasonShutdown
	Code      int    `json:"code"`             // exit code of the main process; 128+Signal where Signal is set
	Signal    int    `json:"signal,omitempty"` // signal that ended the main process
	EndedAt   string `json:"ended_at"`         // RFC 3339 with nanoseconds
}

// Reasons of an ExitRecord.
const (
	ReasonMainExited = "main_exited"
	ReasonShutdown   = "shutdown"
)
