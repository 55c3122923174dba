package images

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/gantryd/gantry/ctl/cli"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// progress shows how a pull goes: a bar for each layer on a terminal, a line for each change
// of stage elsewhere, nothing if quiet.
type progress struct {
	out   io.Writer
	bars  *mpb.Progress
	lines map[string]*line
	quiet bool
}

// line is what is known of one layer.
type line struct {
	verb atomic.Value // string; the bar's own goroutine reads it
	bar  *mpb.Bar
}

func newProgress(_ *cli.Env, out io.Writer, quiet bool) *progress {
	p := &progress{out: out, lines: map[string]*line{}, quiet: quiet}
	if f, ok := out.(*os.File); ok && !quiet && term.IsTerminal(int(f.Fd())) {
		p.bars = mpb.New(mpb.WithOutput(out), mpb.WithWidth(40), mpb.WithRefreshRate(100*time.Millisecond))
	}
	return p
}

func (p *progress) update(m *typesv1.Progress) {
	if p.quiet {
		return
	}
	l, known := p.lines[m.GetId()]
	if !known {
		l = &line{}
		p.lines[m.GetId()] = l
	}
	changed := l.verb.Swap(m.GetVerb()) != any(m.GetVerb())
	if p.bars == nil || m.GetId() == "" {
		if changed && p.bars == nil {
			_, _ = fmt.Fprintln(p.out, text(m))
		}
		return
	}
	if l.bar == nil {
		// Without a total here: a bar that begins with one cannot be given another, nor be ended before it.
		l.bar = p.bars.New(0, mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"),
			mpb.PrependDecorators(decor.Name(m.GetId()+" ", decor.WCSyncSpaceR), decor.Any(func(decor.Statistics) string { return stage(l.verb.Load().(string)) }, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.CountersKiloByte("% .1f / % .1f"), decor.Name(" "), decor.AverageSpeed(decor.SizeB1000(0), "% .1f")))
	}
	if m.GetTotal() > 0 {
		l.bar.SetTotal(m.GetTotal(), false)
	}
	l.bar.SetCurrent(m.GetCurrent())
	if m.GetVerb() == "done" || m.GetVerb() == "exists" {
		l.bar.SetTotal(-1, true)
	}
}

// close ends the bars; those of a pull that failed stay where they were.
func (p *progress) close(ok bool) {
	if p.bars == nil {
		return
	}
	for _, l := range p.lines {
		if l.bar == nil {
			continue
		}
		if ok {
			l.bar.SetTotal(-1, true)
		} else {
			l.bar.Abort(false)
		}
	}
	p.bars.Wait()
}

func text(m *typesv1.Progress) string {
	s := stage(m.GetVerb())
	if m.GetId() != "" {
		s = m.GetId() + ": " + s
	}
	if m.GetMessage() != "" {
		s += " (" + m.GetMessage() + ")"
	} else if m.GetTotal() > 0 && m.GetVerb() == "download" {
		s += " " + cli.Size(m.GetTotal())
	}
	return s
}

var stages = map[string]string{
	"resolve":  "looking up",
	"wait":     "waiting",
	"download": "downloading",
	"unpack":   "unpacking",
	"exists":   "here already",
	"done":     "done",
}

func stage(verb string) string {
	if s, ok := stages[verb]; ok {
		return s
	}
	return verb
}
