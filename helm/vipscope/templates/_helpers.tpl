{{/* The chart's name, or what the operator calls it. */}}
{{- define "vipscope.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* What every object's name begins with; short enough for what is put behind it. */}}
{{- define "vipscope.fullname" -}}
{{- $name := include "vipscope.name" . }}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- default $full .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* The labels by which objects find the pods. They never change: selectors are immutable. */}}
{{- define "vipscope.selector" -}}
app.kubernetes.io/name: {{ include "vipscope.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The labels of every object. */}}
{{- define "vipscope.labels" -}}
{{ include "vipscope.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "vipscope.image" -}}
{{- with .Values.image }}
{{- with .registry }}{{ . }}/{{ end }}{{ .repository }}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/*
What follows takes a dictionary: `root`, the chart's context; `part`, of which part of the chart an
object is: node, cluster, rules, ...; for the two roles `options`, the values that each has for
itself: the top level those of role node, `cluster` those of the other.
*/}}

{{- define "vipscope.partName" -}}
{{ include "vipscope.fullname" .root }}-{{ .part }}
{{- end }}

{{- define "vipscope.partSelector" -}}
{{ include "vipscope.selector" .root }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{/* An object's metadata; `name`, `namespace`, `labels` and `annotations` where it has its own. */}}
{{- define "vipscope.metadata" -}}
name: {{ .name | default (include "vipscope.partName" .) }}
namespace: {{ .namespace | default .root.Release.Namespace }}
labels:
  {{- include "vipscope.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .part }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "vipscope.serviceAccountName" -}}
{{- with .options.serviceAccount }}
{{- .name | default (ternary (include "vipscope.partName" $) "default" .create) }}
{{- end }}
{{- end }}

{{/* What a container may do: nothing, but for role node, which asks the kernel as root. */}}
{{- define "vipscope.securityContext" -}}
{{- $privileged := and (eq .part "node") (not .root.Values.unprivileged) -}}
{{- $user := ternary 0 65532 $privileged -}}
runAsUser: {{ $user }}
runAsGroup: {{ $user }}
runAsNonRoot: {{ not $privileged }}
capabilities:
  drop: [ALL]
  {{- if $privileged }}
  add: [NET_ADMIN]
  {{- end }}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* The Secret with the web configuration file; "" for none. */}}
{{- define "vipscope.webConfigSecret" -}}
{{- with .Values.webConfig }}
{{- .existingSecret | default (ternary (include "vipscope.partName" (dict "root" $ "part" "web-config")) "" (not (empty .content))) }}
{{- end }}
{{- end }}

{{/* HTTP, or HTTPS where the web configuration has a certificate. */}}
{{- define "vipscope.scheme" -}}
{{- .Values.webConfig.scheme | default (ternary "HTTPS" "HTTP" (hasKey .Values.webConfig.content "tls_server_config")) }}
{{- end }}

{{- define "vipscope.arguments" -}}
- --web.listen-address=:{{ .root.Values.port }}
{{- if eq .part "node" }}
{{- with .root.Values.probe }}
{{- if .enabled }}
- --probe.target=vipscope=$({{ include "vipscope.partName" $ | replace "-" "_" | upper }}_PORT_{{ $.root.Values.port }}_TCP),direct=$(HOST_IP):{{ $.root.Values.port }}
{{- end }}
{{- range .targets }}
- {{ printf "--probe.target=%s" . | quote }}
{{- end }}
{{- end }}
{{- else }}
- --lease={{ .root.Release.Namespace }}/{{ include "vipscope.partName" . }}
{{- end }}
- --log.level={{ .root.Values.log.level }}
- --log.format={{ .root.Values.log.format }}
{{- if include "vipscope.webConfigSecret" .root }}
- --web.config.file=/etc/vipscope/web-config.yaml
{{- end }}
{{- with .options.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Variables, so that they also hold for `kubectl exec ... -- vipscope doctor`. */}}
{{- define "vipscope.environment" -}}
- name: VIPSCOPE_ROLE
  value: {{ .part }}
{{- if eq .part "node" }}
- name: VIPSCOPE_NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- if .root.Values.probe.enabled }}
- name: HOST_IP
  valueFrom:
    fieldRef:
      fieldPath: status.hostIP
{{- end }}
{{- end }}
{{- range $name, $value := .options.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- define "vipscope.volumes" -}}
{{- with include "vipscope.webConfigSecret" .root }}
- name: web-config
  secret:
    secretName: {{ . }}
    defaultMode: 0444
{{- end }}
{{- if and (eq .part "node") .root.Values.xtablesLock.enabled }}
- name: xtables-lock
  hostPath:
    path: /run/xtables.lock
    type: FileOrCreate
{{- end }}
{{- with .options.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "vipscope.volumeMounts" -}}
{{- if include "vipscope.webConfigSecret" .root }}
- name: web-config
  mountPath: /etc/vipscope
  readOnly: true
{{- end }}
{{- if and (eq .part "node") .root.Values.xtablesLock.enabled }}
- name: xtables-lock
  mountPath: /run/xtables.lock
  readOnly: true
{{- end }}
{{- with .options.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* A probe of the kubelet's, for which no password or token is needed; but it has no certificate. */}}
{{- define "vipscope.ask" -}}
{{- $tls := .root.Values.webConfig.content.tls_server_config | default dict -}}
{{- if eq ($tls.client_auth_type | default "") "RequireAndVerifyClientCert" -}}
tcpSocket:
  port: http
{{- else -}}
httpGet:
  path: {{ .path }}
  port: http
  scheme: {{ include "vipscope.scheme" .root }}
{{- end }}
timeoutSeconds: 5
{{- end }}

{{/* The pod template of a role. */}}
{{- define "vipscope.pod" -}}
metadata:
  labels:
    {{- include "vipscope.partSelector" . | nindent 4 }}
    {{- with merge dict .options.podLabels .root.Values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .options.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with .root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  serviceAccountName: {{ include "vipscope.serviceAccountName" . }}
  {{- if eq .part "node" }}
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- if .root.Values.xtablesLock.enabled }}
  hostPID: true
  {{- end }}
  {{- else }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "vipscope.partSelector" . | nindent 10 }}
  {{- end }}
  enableServiceLinks: {{ and (eq .part "node") .root.Values.probe.enabled }}
  terminationGracePeriodSeconds: 10
  {{- with .options.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .options.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .options.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .options.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: vipscope
      image: {{ include "vipscope.image" .root }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args:
        {{- include "vipscope.arguments" . | nindent 8 }}
      env:
        {{- include "vipscope.environment" . | nindent 8 }}
      ports:
        - name: http
          containerPort: {{ .root.Values.port }}
      livenessProbe:
        {{- include "vipscope.ask" (dict "root" .root "path" "/healthz") | nindent 8 }}
      readinessProbe:
        {{- include "vipscope.ask" (dict "root" .root "path" "/readyz") | nindent 8 }}
      resources:
        {{- toYaml .options.resources | nindent 8 }}
      securityContext:
        {{- include "vipscope.securityContext" . | nindent 8 }}
      {{- with include "vipscope.volumeMounts" . }}
      volumeMounts:
        {{- . | nindent 8 }}
      {{- end }}
  {{- with include "vipscope.volumes" . }}
  volumes:
    {{- . | nindent 4 }}
  {{- end }}
{{- end }}
