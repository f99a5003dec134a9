{{/* Labels of every object. */}}
{{- define "datakeys.labels" -}}
{{ include "datakeys.selectorLabels" . }}
app.kubernetes.io/part-of: datakeys
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels that select the manager's pods. They cannot change once installed. */}}
{{- define "datakeys.selectorLabels" -}}
app.kubernetes.io/name: datakeys
app.kubernetes.io/component: manager
{{- end }}

{{/* An image by its entry in .Values.image: include "datakeys.image" (list . .Values.image.manager) */}}
{{- define "datakeys.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 -}}
{{ $image.repository }}:{{ default $root.Chart.AppVersion $image.tag }}
{{- end }}
