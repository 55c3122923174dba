//go:build bench

package images

import (
	"os"
	"testing"
	"time"

	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
)

// TestPullSpeed pulls the image that GANTRY_BENCH_IMAGE names, five times from nothing, and says how long that took.
func TestPullSpeed(t *testing.T) {
	ref := os.Getenv("GANTRY_BENCH_IMAGE")
	if ref == "" {
		t.Fatal("GANTRY_BENCH_IMAGE names no image")
	}
	for range 5 {
		w := newWorld(t, "2g")
		begin := time.Now()
		img, err := w.Pull(t.Context(), &imagesv1.PullRequest{Ref: ref}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%v for %d layers, %d bytes unpacked", time.Since(begin), len(img.GetLayers()), img.GetBytes())
	}
}
