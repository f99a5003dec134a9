package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// ofHelm are the labels and annotations that only Helm gives to an object, and that say nothing of what it does.
var ofHelm = []string{
	"app.kubernetes.io/managed-by",
	"app.kubernetes.io/version",
	"helm.sh/chart",
	"helm.sh/resource-policy",
}

// objects reads a stream of YAML documents. The result is keyed by kind, namespace and name; what only Helm adds is gone,
// and so is the namespace datakeys-system, which helm install --create-namespace makes and no template does.
func objects(stream []byte) (map[string]map[string]any, error) {
	found := map[string]map[string]any{}
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(stream)))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		var object map[string]any
		if err := yaml.Unmarshal(document, &object); err != nil {
			return nil, fmt.Errorf("%w in\n%s", err, document)
		}
		if len(object) == 0 {
			continue
		}
		metadata, ok := object["metadata"].(map[string]any)
		if !ok {
			return nil, fmt.Errorf("a document without metadata:\n%s", document)
		}
		for _, field := range []string{"labels", "annotations"} {
			pairs, _ := metadata[field].(map[string]any)
			for _, key := range ofHelm {
				delete(pairs, key)
			}
			if len(pairs) == 0 {
				delete(metadata, field)
			}
		}
		key := fmt.Sprintf("%v %v/%v", object["kind"], metadata["namespace"], metadata["name"])
		if key == "Namespace <nil>/datakeys-system" {
			continue
		}
		if _, twice := found[key]; twice {
			return nil, fmt.Errorf("%s stands there twice", key)
		}
		found[key] = object
	}
}
