package sandbox

import (
	"cmp"
	"errors"
	"sync"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
)

// opening are images on their way to where CRIU can read them, and then what their page server keeps, if they need one.
type opening struct {
	opened chan struct{} // closed when the two after it are set
	images *checkpoint.Images
	err    error

	ask      func()        // for the two after prepared; may be called again
	closed   chan struct{} // closed when nobody wants them any more
	prepared chan struct{} // closed when the two after it are set
	pages    *checkpoint.Pages
	perr     error
}

// openImages begins to open the images. close has to be called.
func (r *restorer) openImages() *opening {
	asked := make(chan struct{})
	o := &opening{opened: make(chan struct{}), prepared: make(chan struct{}), closed: make(chan struct{}), ask: sync.OnceFunc(func() { close(asked) })}
	var lazy *checkpoint.LazyOptions
	if l := r.c.Lazy; l != nil {
		lazy = &checkpoint.LazyOptions{Dir: l.Dir, Least: cmp.Or(l.Least, checkpoint.LazyLeast), First: l.First, Watch: l.Watch}
	}
	go func() {
		defer close(o.prepared)
		o.images, o.err = r.c.Engine.OpenImages(r.c.Dump, r.c.Dir.Images(), r.b.c.IDBase, lazy)
		close(o.opened)
		if o.err != nil || o.images.Lazy() == nil {
			return
		}
		// Not before: the start of the page server would take a processor from what CRIU waits for.
		select {
		case <-asked:
			o.pages, o.perr = o.images.Lazy().Prepare(r.b.c.Init.Program())
		case <-o.closed:
		}
	}()
	return o
}

func (o *opening) await() (*checkpoint.Images, error) {
	<-o.opened
	return o.images, o.err
}

// close closes what is open, and ends a page server that nobody has taken.
func (o *opening) close() (err error) {
	close(o.closed)
	<-o.prepared
	if o.images != nil {
		err = o.images.Close()
	}
	if o.pages != nil {
		err = errors.Join(err, o.pages.End(), o.pages.Close())
	}
	return err
}
