package build

import (
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// The images of the contract's clients that a template stands for. Others are pulled.
var ownImages = map[string]string{
	"e2bdev/base": "base", "e2bdev/code-interpreter": "code-interpreter-v1",
}

// checkInstructions checks what can be known before the build.
func checkInstructions(in api.BuildInstructions) error {
	switch {
	case (in.FromImage == "") == (in.FromTemplate == ""):
		return invalid("one of fromImage and fromTemplate is wanted")
	case len(in.Steps) > maxSteps:
		return invalid("steps has %d elements, at most %d are allowed", len(in.Steps), maxSteps)
	case len(in.StartCmd) > state.MaxTemplateCommand || len(in.ReadyCmd) > state.MaxTemplateCommand:
		return invalid("startCmd and readyCmd have at most %d bytes", state.MaxTemplateCommand)
	}
	if in.FromImage != "" {
		if _, err := parseImage(in); err != nil {
			return err
		}
	}
	for i, st := range in.Steps {
		n, err := len(st.Args), error(nil)
		switch st.Type {
		case "RUN":
			if n < 1 || n > 2 || st.Args[0] == "" {
				err = invalid("steps[%d]: RUN takes a command, and a user", i)
			}
		case "COPY":
			switch {
			case n < 2 || n > 4:
				err = invalid("steps[%d]: COPY takes a source, a destination, a user and a mode", i)
			case !hashForm.MatchString(st.FilesHash):
				err = invalid("steps[%d].filesHash is not 64 hexadecimal digits", i)
			case n == 4 && strings.Trim(st.Args[3], "01234567") != "" || n == 4 && len(st.Args[3]) > 4:
				err = invalid("steps[%d]: the mode %.20q is not octal", i, st.Args[3])
			}
		case "ENV":
			if n == 0 || n%2 != 0 {
				err = invalid("steps[%d]: ENV takes names and values", i)
			}
		case "WORKDIR", "USER":
			if n != 1 || st.Args[0] == "" {
				err = invalid("steps[%d]: %s takes one argument", i, st.Type)
			}
		default:
			err = invalid("steps[%d]: type %.20q is none of COPY, ENV, RUN, WORKDIR, USER", i, st.Type)
		}
		for _, a := range st.Args {
			if strings.ContainsRune(a, 0) {
				err = invalid("steps[%d]: a NUL byte in an argument", i)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ownImage returns the template that stands for an image, or "".
func ownImage(image string) string {
	name := strings.TrimPrefix(strings.TrimPrefix(image, "docker.io/"), "library/")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	return ownImages[name]
}
