package images

import "testing"

func TestFamiliar(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][2]string{
		"docker.io/library/nginx:1.27":          {"nginx", "1.27"},
		"docker.io/grafana/grafana:latest":      {"grafana/grafana", "latest"},
		"ghcr.io/a/b:v1":                        {"ghcr.io/a/b", "v1"},
		"localhost:5000/app:dev":                {"localhost:5000/app", "dev"},
		"localhost:5000/app":                    {"localhost:5000/app", "<none>"},
		"localhost:5000/library/app:1":          {"localhost:5000/library/app", "1"},
		"docker.io/library/nginx@sha256:0123":   {"nginx", "<none>"},
		"docker.io/library/nginx:1@sha256:0123": {"nginx", "1"},
		"hello:latest":                          {"hello", "latest"},
		"":                                      {"<none>", "<none>"},
	} {
		if repository, tag := familiar(in); repository != want[0] || tag != want[1] {
			t.Errorf("%q: %q, %q", in, repository, tag)
		}
	}
}
