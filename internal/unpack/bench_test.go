package unpack

import (
	"os"
	"testing"
)

// BenchmarkRun unpacks the layer that GANTRY_BENCH_LAYER names.
func BenchmarkRun(b *testing.B) {
	root(b)
	path := os.Getenv("GANTRY_BENCH_LAYER")
	if path == "" {
		b.Skip("GANTRY_BENCH_LAYER names no layer: NOT MEASURED")
	}
	for b.Loop() {
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		res, err := Run(b.Context(), Job{Mounts: bind(b.TempDir()), Form: Overlay}, f)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(res.Bytes)
	}
}

// BenchmarkLayer is the same in this process, for profiles.
func BenchmarkLayer(b *testing.B) {
	root(b)
	path := os.Getenv("GANTRY_BENCH_LAYER")
	if path == "" {
		b.Skip("GANTRY_BENCH_LAYER names no layer: NOT MEASURED")
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		res, err := into(b, b.TempDir(), Job{Form: Overlay}, raw)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(res.Bytes)
	}
}
