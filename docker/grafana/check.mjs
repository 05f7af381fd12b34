// Checks the dashboards against Grafana's published types, in the version of compose.yaml. Fails on unknown panel
// options and on invalid values. Requires node 20 and npm:
//
//   node docker/grafana/check.mjs
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const here = import.meta.dirname;
const compose = readFileSync(join(here, "../compose.yaml"), "utf8");
const [, version] = compose.match(/grafana\/grafana:([\d.]+)/);
const panels = {
  bargauge: "BarGauge",
  heatmap: "Heatmap",
  stat: "Stat",
  table: "Table",
  text: "Text",
  timeseries: "TimeSeries",
};
// In JSON, enum members are plain strings and numbers.
const prelude = `
import type { AnnotationQuery, Dashboard, DataQuery, Panel, RowPanel } from "@grafana/schema";
type Json<T> = T extends string ? \`\${T}\`
  : T extends number ? (\`\${T}\` extends \`\${infer N extends number}\` ? N : T)
  : T extends (infer U)[] ? Json<U>[]
  : T extends object ? { [K in keyof T]: Json<T[K]> }
  : T;
type Target = DataQuery & {
  expr: string; legendFormat?: string; instant?: boolean; range?: boolean; format?: "time_series" | "table" | "heatmap";
};
type Typed<Kind, Options, Field> = Json<Omit<Panel, "type" | "fieldConfig" | "targets" | "options">> & {
  type: Kind; options: Json<Options>; targets?: Json<Target>[];
  fieldConfig?: Json<{
    defaults: Omit<FieldConfigSource["defaults"], "custom"> & { custom?: Field };
    overrides: FieldConfigSource["overrides"];
  }>;
};
type FieldConfigSource = NonNullable<Panel["fieldConfig"]>;
type Annotation = AnnotationQuery<Omit<Target, "legendFormat"> & { interval: string }> & {
  titleFormat: string; textFormat: string;  // fields of the Prometheus data source
};
type DashboardJson = Json<Omit<Dashboard, "panels" | "annotations"> & { annotations: { list: Annotation[] } }>;
`;

function source(dashboard) {
  const types = Object.entries(panels).map(([kind, name]) => `import * as ${kind} from "./${kind}";`);
  const parts = dashboard.panels.map((panel, number) => {
    const field = ["stat", "bargauge", "text"].includes(panel.type) ? "object" : `${panel.type}.FieldConfig`;
    const type = panel.type === "row" ? "Json<RowPanel>" : `Typed<"${panel.type}", ${panel.type}.Options, ${field}>`;
    return `// ${panel.title}\nexport const panel${number}: ${type} = ${JSON.stringify(panel, null, 2)};`;
  });
  const { panels: _, ...rest } = dashboard;
  const outer = `export const dashboard: DashboardJson = ${JSON.stringify(rest, null, 2)};`;
  return [...types, prelude, ...parts, outer].join("\n");
}

const folder = mkdtempSync(join(tmpdir(), "dashboards-"));
const run = (command, ...parts) => execFileSync(command, parts, { cwd: folder, stdio: ["ignore", 1, 2] });
try {
  writeFileSync(join(folder, "package.json"), "{}");
  const quiet = ["--silent", "--no-audit", "--no-fund", "--ignore-scripts"];
  run("npm", "install", ...quiet, `@grafana/schema@${version}`, "typescript@5");
  for (const [kind, name] of Object.entries(panels)) {
    const types = `node_modules/@grafana/schema/dist/types/raw/composable/${kind}/panelcfg/x/${name}PanelCfg_types.gen`;
    writeFileSync(join(folder, `${kind}.ts`), `export * from "./${types}";`);
  }
  const files = readdirSync(join(here, "dashboards")).map((file) => {
    const dashboard = JSON.parse(readFileSync(join(here, "dashboards", file), "utf8"));
    writeFileSync(join(folder, `${file}.ts`), source(dashboard));
    return `${file}.ts`;
  });
  const modules = ["--module", "esnext", "--moduleResolution", "bundler"];
  run("npx", "tsc", "--noEmit", "--strict", "--skipLibCheck", ...modules, ...files);
  console.log(`${files.length} dashboards match the types of Grafana ${version}`);
} catch {
  process.exitCode = 1;
} finally {
  rmSync(folder, { recursive: true });
}
