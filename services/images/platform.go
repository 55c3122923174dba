package images

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// platform is what an image runs on.
type platform struct{ OS, Architecture, Variant string }

func (p platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// aliases are names that people use for Go's.
var aliases = map[string]platform{
	"x86_64": {Architecture: "amd64"}, "x86-64": {Architecture: "amd64"}, "aarch64": {Architecture: "arm64"},
	"armhf": {Architecture: "arm", Variant: "v7"}, "armel": {Architecture: "arm", Variant: "v6"}, "i386": {Architecture: "386"},
}

// normal is p with the names of https://github.com/opencontainers/image-spec/blob/v1.1.1/image-index.md, and without the variant that
// goes without saying.
func (p platform) normal() platform {
	p = platform{strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)}
	if a, ok := aliases[p.Architecture]; ok {
		p.Architecture = a.Architecture
		if p.Variant == "" {
			p.Variant = a.Variant
		}
	}
	switch {
	case p.Architecture == "arm64" && (p.Variant == "v8" || p.Variant == "8"), p.Architecture == "amd64" && p.Variant == "v1":
		p.Variant = ""
	case p.Architecture == "arm" && p.Variant == "":
		p.Variant = "v7"
	}
	return p
}

// parsePlatform reads os/architecture[/variant], or only an architecture.
func parsePlatform(s string, def platform) (platform, error) {
	if s == "" {
		return def.normal(), nil
	}
	parts := strings.Split(s, "/")
	for _, p := range parts {
		if p == "" || strings.ContainsFunc(p, func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.", r)
		}) {
			parts = nil
		}
	}
	switch len(parts) {
	case 1:
		return platform{OS: "linux", Architecture: parts[0]}.normal(), nil
	case 2:
		return platform{OS: parts[0], Architecture: parts[1]}.normal(), nil
	case 3:
		return platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}.normal(), nil
	}
	return platform{}, fmt.Errorf("platform %.80q: write os/architecture[/variant], as in linux/arm64: %w", s, errdefs.ErrInvalidArgument)
}

// ranks lists the variants that a platform runs, best first. "" is what every member of an architecture runs.
func (p platform) ranks() []string {
	switch p.Architecture {
	case "arm":
		all := []string{"v8", "v7", "v6", "v5"}
		if i := slices.Index(all, p.Variant); i >= 0 {
			return append(slices.Clone(all[i:]), "")
		}
	case "amd64":
		all := []string{"v4", "v3", "v2"}
		if i := slices.Index(all, p.Variant); i >= 0 {
			return append(slices.Clone(all[i:]), "")
		}
	}
	if p.Variant != "" {
		return []string{p.Variant, ""}
	}
	return []string{""}
}

// rank says how well an image for have runs on p: smaller is better, and -1 is not at all.
func (p platform) rank(have platform) int {
	have = have.normal()
	if have.OS != p.OS || have.Architecture != p.Architecture {
		return -1
	}
	return slices.Index(p.ranks(), have.Variant)
}

// choose picks, of an index, the manifest for a platform. What is for no platform (attestations) is passed over.
func choose(index ocispec.Index, p platform) (ocispec.Descriptor, error) {
	var best ocispec.Descriptor
	bestRank := -1
	var has []string
	for _, m := range index.Manifests {
		if m.Annotations["vnd.docker.reference.type"] != "" || m.ArtifactType != "" {
			continue
		}
		rank := 1 << 10 // one that does not say what it is for may be for anything: its configuration tells
		if m.Platform != nil {
			have := platform{m.Platform.OS, m.Platform.Architecture, m.Platform.Variant}
			if have.OS == "unknown" {
				continue
			}
			has = append(has, have.String())
			rank = p.rank(have)
		}
		if rank >= 0 && (bestRank < 0 || rank < bestRank) {
			best, bestRank = m, rank
		}
	}
	if bestRank >= 0 {
		return best, nil
	}
	if len(has) == 0 {
		return best, fmt.Errorf("its index lists no images: %w", errdefs.ErrNotFound)
	}
	slices.Sort(has)
	return best, fmt.Errorf("it is not there for %s, only for %s: %w", p, strings.Join(slices.Compact(has), ", "), errdefs.ErrNotFound)
}
