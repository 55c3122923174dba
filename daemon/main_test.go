package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestWords: the log says an error as its callers read it.
func TestWords(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: words}))
	log.Info("it ends", "err", fmt.Errorf("another gantryd uses it: stop that one: %w", errdefs.ErrFailedPrecondition), "pid", 7)
	if got := out.String(); !strings.Contains(got, `err="another gantryd uses it: stop that one" pid=7`) {
		t.Error(got)
	}
}
